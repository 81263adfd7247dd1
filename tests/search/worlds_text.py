"""The text half of the colour encoder, for a process that must not load torch or av."""

import numpy as np


class WordsOnly:
    name, space_id, dim = "colour-encoder", "colours", 3

    def embed_texts(self, texts):
        return np.array([[1, 0, 0] if text == "red" else [0.6, 0, 0.8] for text in texts], dtype=np.float32)
