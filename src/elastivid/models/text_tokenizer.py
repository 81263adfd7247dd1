"""WordPiece tokenizer that travels inside a weights file. Imports no torch: training and search share it.

The tokenizer's json (the `tokenizers` library's own format) is stored zlib-compressed as a uint8 tensor, so one
`.safetensors` file holds everything that turns words into a vector.

Letters: N texts, L tokens of the longest text.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from elastivid.core.errors import WeightsError

UNKNOWN = "[UNK]"
ENDINGS = frozenset({"##s", "##es", "##ed", "##d", "##er", "##ers", "##ing", "##ly"})
MAX_TOKENIZER_BYTES = 64 * 2**20  # a damaged or hostile file may not unpack to more than this


class TextTokenizer:
    """Turns texts into padded token ids.

    No begin or end tokens are added. Texts longer than `context_length` tokens are cut; a text without any token
    (empty, or blanks only) becomes one `[UNK]`, so every text has a length of at least 1.

    Args:
        packed: zlib-compressed json of the tokenizer.
        context_length: most tokens kept of one text.

    Raises:
        WeightsError: `packed` is damaged or not a tokenizer.
    """

    def __init__(self, packed: bytes, context_length: int = 32) -> None:
        if context_length < 1:
            raise ValueError(f"context_length must be >= 1 token, got {context_length}")
        try:
            unpacker = zlib.decompressobj()
            json_text = unpacker.decompress(packed, MAX_TOKENIZER_BYTES).decode("utf-8")
            self._tokenizer = Tokenizer.from_str(json_text)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise WeightsError(
                f"the tokenizer in the weights file cannot be read ({len(packed)} bytes: {error}); "
                "it must be a zlib-compressed tokenizer json. Fetch the weights file again."
            ) from error
        unknown_id = self._tokenizer.token_to_id(UNKNOWN)
        if unknown_id is None:
            raise WeightsError(
                f"the tokenizer in the weights file has no {UNKNOWN} token; fetch the weights file again"
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(context_length)
        self.context_length = context_length
        self.unknown_id: int = unknown_id
        self.vocab_size: int = self._tokenizer.get_vocab_size()

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (N, L) int64, padded with 0, and lengths (N,) int64, each between 1 and `context_length`.

        Raises:
            TypeError: `texts` is one string instead of a sequence of strings.
        """
        rows = self.token_ids(texts)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)  # (N,)
        ids = np.zeros((len(rows), int(lengths.max(initial=1))), dtype=np.int64)  # (N, L)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids, lengths

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, unpadded, between 1 and `context_length` of them.

        Raises:
            TypeError: `texts` is one string instead of a sequence of strings.
        """
        if isinstance(texts, str):
            raise TypeError(f"texts must be a sequence of strings, got one string {texts[:40]!r}; pass [text]")
        encoded = self._tokenizer.encode_batch_fast([_printable(text) for text in texts], add_special_tokens=False)
        return [entry.ids or [self.unknown_id] for entry in encoded]

    def id_of(self, token: str) -> int:
        """Id of a token such as "[CLS]".

        Raises:
            WeightsError: the vocabulary has no such token.
        """
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise WeightsError(f"the tokenizer in the weights file has no {token} token; it is of another kind")
        return int(found)

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the vocabulary cannot spell at all (they become `[UNK]`), in order."""
        safe = _printable(text)
        entry = self._tokenizer.encode(safe, add_special_tokens=False)
        spans = zip(entry.ids, entry.offsets, strict=True)
        return [safe[start:end] for token, (start, end) in spans if token == self.unknown_id and end > start]

    def has_word(self, word: str) -> bool:
        """Whether the vocabulary holds `word` itself, or with a common ending; else it is only spelled from pieces."""
        tokens = self._tokenizer.encode(_printable(word), add_special_tokens=False).tokens
        return bool(tokens) and tokens[0] != UNKNOWN and all(token in ENDINGS for token in tokens[1:])


def pack_tokenizer(json_text: str) -> bytes:
    """Compress a tokenizer's json for `TextTokenizer`, after dropping what the library sets itself.

    Padding, truncation and the template of begin and end tokens are removed.
    """
    tokenizer = Tokenizer.from_str(json_text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.post_processor = None
    return zlib.compress(tokenizer.to_str().encode("utf-8"), 9)


def _printable(text: str) -> str:
    """Replace lone surrogates (undecodable file names, broken json), which the tokenizers library refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")
