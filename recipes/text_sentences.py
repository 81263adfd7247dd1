# ruff: noqa: E501
"""Sentences for `distill_text.py`: templates and words to train on, hand-written pairs to measure with.

Nothing under MEASURED below is ever trained on.
"""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

SLOTS = {
    "colour": "red green blue yellow orange purple pink white black gray brown cyan magenta golden silver dark pale",
    "shape": "circle square triangle star ring cross ball disc diamond hexagon rectangle pentagon heart arrow cube dot "
    "bar box ellipse",
    "size": "small big large tiny huge little tall short long wide",
    "motion": "moves slides bounces spins rotates grows shrinks zigzags orbits falls rises drops rolls drifts jumps "
    "swings circles blinks fades flies floats shakes stops turns accelerates waits",
    "way": "left,right,up,down,upwards,downwards,to the left,to the right,from left to right,from right to left,"
    "towards the top,towards the bottom,diagonally,clockwise,counterclockwise,forwards,backwards,in a circle,"
    "into the corner,across the screen,around the centre,off the screen",
    "speed": "slowly quickly fast gently suddenly steadily smoothly",
    "who": "man woman boy girl child baby person player dancer cook worker teacher student farmer nurse singer rider "
    "swimmer runner climber gymnast soldier painter musician driver doctor couple family crowd team group",
    "beast": "dog cat horse bird cow sheep monkey bear lion tiger elephant rabbit snake fish panda duck chicken squirrel "
    "butterfly goat",
    "doing": "brushing hair,catching a ball,clapping hands,climbing stairs,swinging a golf club,jumping,kicking a ball,"
    "picking something up,pouring water,doing pull-ups,pushing a table,running,shooting a basketball,shooting a bow,"
    "firing a gun,sitting down,standing up,swinging a baseball bat,throwing a stone,walking,juggling,dancing,"
    "swimming,diving,riding a bicycle,riding a horse,driving a car,cooking,chopping onions,frying an egg,eating,"
    "drinking coffee,smoking,talking,laughing,waving,shaking hands,hugging,kissing,crying,sleeping,falling on the floor,"
    "crawling,lifting weights,doing push-ups,boxing,fencing,skiing,snowboarding,skating,surfing,rowing a boat,fishing,"
    "painting a wall,drawing,writing,reading a book,typing,playing the guitar,playing the piano,playing the drums,"
    "singing,playing tennis,playing football,playing chess,bowling,hammering a nail,sawing wood,digging,watering plants,"
    "mowing the lawn,washing dishes,cleaning a window,sweeping the floor,folding clothes,ironing a shirt,opening a door,"
    "closing a drawer,turning around,bowing,pointing,taking a photo,using a phone,looking at a screen,chewing,"
    "tying shoes,putting on a jacket,taking off a hat,blowing out candles,opening a present,stirring a pot,"
    "applying make-up,shaving,feeding an animal,pulling a rope,carrying a box,climbing a wall,doing a handstand,"
    "turning a cartwheel,flipping,punching,kicking,drawing a sword,getting up from bed",
    "verb": "chases follows hits pushes pulls catches kicks carries lifts drops throws watches helps hugs bites touches "
    "passes hides covers crosses overtakes feeds leads meets greets",
    "thing": "ball cup bottle bag book chair table phone plate knife car bus train truck bicycle boat plane hat box door "
    "window tree flower rock rope ladder bed lamp guitar camera laptop bowl pan spoon apple banana sandwich pizza cake "
    "umbrella towel shoe shirt blanket broom bucket hammer kite toy",
    "place": "in the kitchen,on the street,in a park,on the beach,in the snow,at night,in a forest,on a stage,in a gym,"
    "in an office,in the living room,under water,on a mountain,in a garden,on a boat,in a crowd,near the window,"
    "in front of a house,on a bridge,in the rain,at a table,on the grass,in a classroom,in a shop,on the road,"
    "in a swimming pool,on a roof,in the dark",
}

# Each line: the slot that 1 and 2 are drawn from, then forms that mean the same. Exchanging 1 and 2 in a form gives
# its twin: the same words, another meaning. "{colour:a}" and "{colour:b}" are two draws.
ORDERED = [
    "colour; a {1} {shape} {motion}, then a {2} {shape:b} {motion:b}; a {2} {shape:b} {motion:b} after a {1} {shape} "
    "{motion}; first a {1} {shape} {motion}, after that a {2} {shape:b} {motion:b}",
    "shape; a {colour} {1} {motion}, then a {colour:b} {2} {motion:b}; before a {colour:b} {2} {motion:b}, a {colour} {1} "
    "{motion}; a {colour} {1} {motion} and then a {colour:b} {2} {motion:b}",
    "shape; a {1} {motion} {way}, then a {2} {motion:b} {way:b}; first a {1} {motion} {way}, then a {2} {motion:b} "
    "{way:b}; a {2} {motion:b} {way:b} after a {1} {motion} {way}",
    "motion; a {colour} {shape} {1}, then it {2}; a {colour} {shape} {1} before it {2}; after a {colour} {shape} {1}, it {2}",
    "motion; a {colour} {shape} {1} {way}, then {2}; the {colour} {shape} first {1} {way}, afterwards it {2}",
    "way; a {colour} {shape} {motion} {1}, then {2}; first {1}, then {2} {motion} the {colour} {shape}; a {colour} "
    "{shape} {motion} {1} and after that {2}",
    "colour; a {1} {shape} and a {2} {shape:b}; a {2} {shape:b} and a {1} {shape}; a {2} {shape:b} with a {1} {shape}",
    "colour; a {1} {shape} {motion}, a {2} {shape:b} {motion:b}; a {2} {shape:b} that {motion:b} and a {1} {shape} that "
    "{motion}",
    "colour; the {1} {shape} is above the {2} {shape:b}; the {2} {shape:b} is below the {1} {shape}; a {1} {shape} over a "
    "{2} {shape:b}",
    "shape; a {colour} {1} left of a {colour:b} {2}; a {colour:b} {2} right of a {colour} {1}; a {colour} {1} to the left "
    "of a {colour:b} {2}",
    "size; a {1} {shape} and a {2} {thing}; a {2} {thing} with a {1} {shape}",
    "colour; a {who} with a {1} {thing} and a {2} {thing:b}; a {who} with a {2} {thing:b} and a {1} {thing}",
    "way; a {shape} {motion} {1} and a {thing} {motion:b} {2}; a {thing} {motion:b} {2} while a {shape} {motion} {1}",
    "who; the {1} {verb} the {2}; a {1} who {verb} a {2}; a {1} {verb} the {2} {place}",
    "beast; the {1} {verb} the {2}; it is the {1} that {verb} the {2}; a {1} {verb} a {2}",
    "who; the {1} is {doing} while the {2} is {doing:b}; a {2} {doing:b} and a {1} {doing}",
    "doing; a {who} is {1}, then {2}; a {who} is {2} after {1}; before {2} the {who} is {1}",
    "doing; {1} and then {2}; {2} after {1}; first {1}, then {2}; {1} before {2}",
    "thing; a {who} puts the {1} on the {2}; a {1} is put on the {2} by a {who}; the {1} is on the {2}",
    "thing; a {1} under a {colour} {2}; a {colour} {2} on top of a {1}",
    "word; a {1} {motion} before a {2}; a {2} after a {1} {motion}",
]

PLAIN = [
    "a {who} {doing}",
    "{doing}",
    "{doing} {place}",
    "a video of a {who} {doing}",
    "a {who} is {doing} {place}",
    "two people {doing}",
    "a {colour} {shape}",
    "a {colour} {shape} {motion} {way}",
    "a {size} {colour} {shape} {motion} {speed} {way}",
    "the {colour} {thing}",
    "a {size} {beast} {place}",
    "a {beast} {motion} {place}",
    "a {who} with a {colour} {thing}",
    "what is the {who} {doing} {place}?",
    "why is the {who} holding a {thing}?",
    "a {thing} and a {thing:b} {place}",
    "no {thing}, only a {thing:b}",
    "a {colour} {thing} falls off the {thing:b}",
    "{word}",
    "a {word}",
    "{word} {word:b}",
    "the {word} of the {word:b}",
    "a {who} and a {word} {place}",
    "{word} {word:b} {word:c}",
    "a {colour} {word} with {word:b}",
]

# MEASURED

PARAPHRASES = [
    ("a man is riding a bike down the street", "a guy cycles along the road"),
    ("a woman slices vegetables for dinner", "a lady is cutting up carrots and peppers for a meal"),
    ("a kid throws a frisbee to a dog", "a child tosses a flying disc for his puppy"),
    ("two men shake hands", "a pair of gentlemen greet each other with a handshake"),
    ("an athlete jumps over a bar", "a sportsman leaps over the high jump"),
    ("a person fills a glass with milk", "somebody is pouring milk into a cup"),
    ("an infant is crawling on the carpet", "a baby moves over the rug on hands and knees"),
    ("a cat leaps onto a sofa", "a kitten hops up on the couch"),
    ("a chef fries eggs", "a cook prepares an omelette in a pan"),
    ("the audience applauds", "spectators are clapping"),
    ("a vehicle crashes into a tree", "an automobile has an accident with a trunk"),
    ("an elderly woman knits a sweater", "a grandmother makes a pullover with needles"),
    ("a boy blows out birthday candles", "a child celebrates with a cake"),
    ("a surfer rides a big wave", "someone is surfing in the ocean"),
    ("a man falls off his horse", "a rider is thrown from the saddle"),
    ("a student writes on the blackboard", "a pupil uses chalk in the classroom"),
    ("a girl combs her long hair", "a young woman is using a hairbrush"),
    ("people are dancing at a party", "guests move to the music at a celebration"),
    ("a mechanic repairs an engine", "a man is fixing a motor in a garage"),
    ("a bird builds its nest", "a sparrow carries twigs to make its home"),
    ("it is snowing heavily in the city", "a blizzard hits town"),
    ("a man does chin-ups in the gym", "an athlete pulls himself up on a bar"),
    ("a woman cries at a funeral", "a lady is in tears beside a coffin"),
    ("the goalkeeper saves a penalty", "a goalie stops the shot"),
    ("a plane takes off", "an aircraft leaves the runway"),
    ("a fisherman reels in a large trout", "a man catches a big fish"),
    ("a hiker climbs a steep trail", "someone is walking up a mountain path"),
    ("a painter works on a portrait", "an artist is drawing a picture of a face"),
    ("a toddler eats spaghetti", "a small child has pasta for lunch"),
    ("a gardener plants tulips", "someone is putting flowers in the soil"),
    ("firefighters put out a burning house", "firemen extinguish a blaze"),
    ("a barber trims a beard", "a hairdresser is shaving a customer"),
    ("a musician strums an acoustic guitar", "somebody plays a string instrument"),
    ("a policeman directs the traffic", "an officer waves cars through a crossing"),
    ("a couple kisses at their wedding", "the bride and groom embrace"),
    ("a puppy sleeps in a basket", "a young dog is taking a nap"),
    ("a woman does yoga on the beach", "a lady stretches by the sea"),
    ("a carpenter saws a plank", "someone cuts a wooden board"),
    ("a man lights a cigarette", "a guy starts to smoke"),
    ("a train arrives at the station", "a locomotive pulls into the platform"),
    ("kids build a snowman", "children make a figure out of snow"),
    ("a waiter serves drinks", "a server brings beverages to the table"),
    ("a nurse gives a patient an injection", "a medical worker vaccinates someone"),
    ("a speaker gives a talk", "a person lectures in front of an audience"),
    ("a monkey peels a banana", "an ape eats fruit"),
    ("a woman tries on a dress", "a lady puts on new clothes in a shop"),
    ("an archer hits the target", "somebody shoots an arrow with a bow"),
    ("a boxer knocks out his opponent", "a fighter wins with a punch"),
    ("a person types on a keyboard", "someone is working at a computer"),
    ("a man vacuums the living room", "someone is cleaning the carpet with a hoover"),
    ("waves hit the rocks", "the sea breaks against the cliff"),
    ("a skater does a trick on a ramp", "a boy jumps with his skateboard"),
    ("a juggler keeps five balls in the air", "a performer tosses and catches many balls"),
    ("a mother rocks her newborn to sleep", "a woman soothes a baby"),
    ("a horse gallops through a field", "a stallion runs across the meadow"),
    ("a person unlocks a door with a key", "someone opens the entrance"),
    ("a batter hits a home run", "a baseball player swings and strikes the ball"),
    ("a magician pulls a rabbit from a hat", "a performer does a conjuring trick"),
    ("a crowd protests in the square", "demonstrators march with banners"),
    ("a rocket is launched into space", "a spacecraft lifts off"),
    ("the crimson circle travels leftwards", "a red disc moves to the left"),
    ("a navy box ascends", "the dark blue square goes up"),
    ("an emerald star spins", "a green star is rotating"),
    ("a yellow ball gets bigger", "the golden sphere grows"),
]

ORDER_TWINS = [
    ("a red circle then a blue square", "a blue square then a red circle"),
    ("a green star moves left, then a white ring falls", "a white ring falls, then a green star moves left"),
    ("a dog chases a cat", "a cat chases a dog"),
    ("the ball moves up and then left", "the ball moves left and then up"),
    ("a man sits down, then drinks", "a man drinks, then sits down"),
    ("a woman hands a book to a boy", "a boy hands a book to a woman"),
    ("a yellow triangle and a purple cross", "a purple triangle and a yellow cross"),
    ("open the door before you turn on the light", "turn on the light before you open the door"),
    ("a cup on top of a plate", "a plate on top of a cup"),
    ("the cube grows and then spins", "the cube spins and then grows"),
    ("a car follows a truck over the bridge", "a truck follows a car over the bridge"),
    ("the left player serves, the right player misses", "the right player serves, the left player misses"),
    ("jumping after throwing a ball", "throwing a ball after jumping"),
    ("a big black box next to a small white box", "a small black box next to a big white box"),
    ("the lion bites the tiger", "the tiger bites the lion"),
    ("pour the milk, then stir the flour", "stir the flour, then pour the milk"),
]


def natural_sentences(folder: Path) -> list[str]:
    """Captions, questions and answers of public benchmarks from `folder` (captions.jsonl and *.csv below it)."""
    found: set[str] = set()
    for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        found.update(caption["text"] for caption in json.loads(line)["captions"])
    for path in sorted(folder.glob("*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.update(row[key] for key in ("question", "answer", "a0", "a1", "a2", "a3", "a4") if row.get(key))
    return sorted(text for text in found if 3 <= len(text.split()) <= 40)


class Sentences:
    """Seeded source of training sentences. `words` fill the slot "word"."""

    def __init__(self, words: list[str], seed: int) -> None:
        self.rng = random.Random(seed)
        self.slots = {name: text.split("," if "," in text else " ") for name, text in SLOTS.items()} | {"word": words}

    def _draw(self, slot: str) -> str:
        """A word for `slot`, or, in one of three draws, any word: what is learned about order must hold for all."""
        return self.rng.choice(self.slots["word" if self.rng.random() < 1 / 3 else slot])

    def _fill(self, forms: list[str]) -> list[str]:
        drawn: dict[str, str] = {}

        def draw(match: re.Match[str]) -> str:
            return drawn.setdefault(match[0], self._draw(match[1]))

        return [re.sub(r"\{(\w+)(:\w)?\}", draw, form) for form in forms]

    def plain(self) -> str:
        """One sentence."""
        return self._fill([self.rng.choice(PLAIN)])[0]

    def triple(self) -> tuple[str, str, str]:
        """A sentence, another of the same meaning, and one of another meaning with the words of the first or second."""
        slot, *forms = self.rng.choice(ORDERED).split("; ")
        anchor, same = self.rng.sample(forms, 2)
        twin = self.rng.choice((anchor, same)).replace("{1}", "<").replace("{2}", "{1}").replace("<", "{2}")
        first = second = self._draw(slot)
        while second == first:
            second = self._draw(slot)
        filled = [form.replace("{1}", first).replace("{2}", second) for form in (anchor, same, twin)]
        return tuple(self._fill(filled))  # type: ignore[return-value]
