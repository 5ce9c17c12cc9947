"""Mending and turning of sentences; both sides are built from the same parts, so that every answer is known."""

from random import Random

from data.families.family import Row, article, computed, listed
from data.families.lists import ANIMALS, NAMES, PLACES

ACTIONS = (
    ("walk", "walks", "walked", "walking", "to the station"),
    ("play", "plays", "played", "playing", "in the yard"),
    ("cook", "cooks", "cooked", "cooking", "dinner for the family"),
    ("paint", "paints", "painted", "painting", "the old fence"),
    ("clean", "cleans", "cleaned", "cleaning", "the kitchen"),
    ("visit", "visits", "visited", "visiting", "the museum"),
    ("open", "opens", "opened", "opening", "the window"),
    ("watch", "watches", "watched", "watching", "a film"),
    ("repair", "repairs", "repaired", "repairing", "the bicycle"),
    ("water", "waters", "watered", "watering", "the plants"),
    ("carry", "carries", "carried", "carrying", "the heavy box"),
    ("wash", "washes", "washed", "washing", "the car"),
    ("bake", "bakes", "baked", "baking", "a cake"),
    ("study", "studies", "studied", "studying", "for the exam"),
    ("finish", "finishes", "finished", "finishing", "the homework"),
)
"""(base form, third person, past, -ing form, rest of the sentence)"""

TRANSITIVE = tuple(action for action in ACTIONS if not action[4].startswith(("to ", "in ", "for ")))


def mend_agreement(random: Random) -> Row:
    name, (base, third, _, _, rest) = random.choice(NAMES), random.choice(ACTIONS)
    if random.random() < 0.5:
        wrong, right = f"{name} {base} {rest} every day.", f"{name} {third} {rest} every day."
    else:
        other = random.choice([n for n in NAMES if n != name])
        wrong = f"{name} and {other} {third} {rest} every day."
        right = f"{name} and {other} {base} {rest} every day."
    ask = random.choice(
        ("Correct the grammar of the sentence.", "Fix the grammar mistake.", "Rewrite the sentence without the error.")
    )
    return Row(ask, wrong, right)


def mend_article(random: Random) -> Row:
    name, animal = random.choice(NAMES), random.choice(ANIMALS)
    right = article(animal)
    wrong = f"{'a' if right.startswith('an ') else 'an'} {animal}"
    place = random.choice(PLACES)
    ask = random.choice(("Correct the article in the sentence.", "Find and fix the wrong article."))
    return Row(ask, f"{name} saw {wrong} near {place}.", f"{name} saw {right} near {place}.")


def capitals_and_stop(random: Random) -> Row:
    name, (_, third, past, _, rest) = random.choice(NAMES), random.choice(ACTIONS)
    right = random.choice((f"{name} {past} {rest} yesterday.", f"Every morning {name} {third} {rest}."))
    ask = random.choice(("Add capital letters and a full stop.", "Punctuate and capitalize the sentence correctly."))
    return Row(ask, right.lower().rstrip("."), right)


def into_past(random: Random) -> Row:
    name, (_, third, past, ing, rest) = random.choice(NAMES), random.choice(ACTIONS)
    given = random.choice((f"{name} {third} {rest}.", f"{name} is {ing} {rest}."))
    ask = random.choice(("Rewrite the sentence in the simple past tense.", "Change the sentence to the past tense."))
    result = f"{name} {past} {rest}." if f" {third} " in given or "simple" in ask else f"{name} was {ing} {rest}."
    return Row(ask, given, result)


def into_future(random: Random) -> Row:
    name, (base, third, past, _, rest) = random.choice(NAMES), random.choice(ACTIONS)
    given = random.choice((f"{name} {third} {rest}.", f"{name} {past} {rest}."))
    ask = random.choice(
        ("Rewrite the sentence in the future tense.", "Change the sentence to future tense with 'will'.")
    )
    return Row(ask, given, f"{name} will {base} {rest}.")


def into_negative(random: Random) -> Row:
    name, (base, third, past, _, rest) = random.choice(NAMES), random.choice(ACTIONS)
    if random.random() < 0.5:
        given, result = f"{name} {third} {rest}.", f"{name} does not {base} {rest}."
    else:
        given, result = f"{name} {past} {rest}.", f"{name} did not {base} {rest}."
    return Row(random.choice(("Make the sentence negative.", "Negate the following sentence.")), given, result)


def into_question(random: Random) -> Row:
    name, (base, third, past, _, rest) = random.choice(NAMES), random.choice(ACTIONS)
    if random.random() < 0.5:
        given, result = f"{name} {third} {rest}.", f"Does {name} {base} {rest}?"
    else:
        given, result = f"{name} {past} {rest}.", f"Did {name} {base} {rest}?"
    return Row(
        random.choice(("Turn the statement into a yes-or-no question.", "Rewrite this as a question.")), given, result
    )


def into_passive(random: Random) -> Row:
    name, (_, _, past, _, rest) = random.choice(NAMES), random.choice(TRANSITIVE)
    thing, aim = ("dinner", " for the family") if rest.startswith("dinner") else (rest, "")
    verb = "were" if thing == "the plants" else "was"
    result = f"{thing[0].upper()}{thing[1:]} {verb} {past}{aim} by {name}."
    ask = random.choice(("Rewrite the sentence in the passive voice.", "Change this sentence to passive voice."))
    return Row(ask, f"{name} {past} {rest}.", result)


def join_sentences(random: Random) -> Row:
    first, second = random.sample(NAMES, 2)
    one, two = random.sample(ACTIONS, 2)
    word = random.choice(("and", "but", "while"))
    comma = "," if word != "while" else ""
    return Row(
        f'Join the two sentences with the word "{word}".',
        f"{first} {one[2]} {one[4]}. {second} {two[2]} {two[4]}.",
        f"{first} {one[2]} {one[4]}{comma} {word} {second} {two[2]} {two[4]}.",
    )


def find_part(random: Random) -> Row:
    name, (_, _, past, _, rest) = random.choice(NAMES), random.choice(ACTIONS)
    part, answer = random.choice((("verb", past), ("subject", name)))
    ask = random.choice(("Identify the {p} in the sentence.", "What is the {p} of this sentence?"))
    return Row(ask.format(p=part), f"{name} {past} {rest}.", f'The {part} is "{answer}".')


def replace_name(random: Random) -> Row:
    old, new = random.sample(NAMES, 2)
    place = random.choice(PLACES)
    _, _, past, _, rest = random.choice(ACTIONS)
    given = f"{{}} {past} {rest} and then went to {place}."
    return Row(f'Replace the name "{old}" with "{new}".', given.format(old), given.format(new))


def spelling(random: Random) -> Row:
    wrong, right = random.choice(MISSPELT)
    before, after = random.choice(FRAMES)
    ask = random.choice(("Correct the spelling mistake.", "Find the misspelt word and write the sentence correctly."))
    return Row(ask, f"{before} {wrong} {after}", f"{before} {right} {after}")


MISSPELT = tuple(
    tuple(pair.split(":"))
    for pair in listed("""
    recieve:receive, beleive:believe, seperate:separate, definately:definitely, untill:until, tommorow:tomorrow,
    freind:friend, wich:which, becuase:because, adress:address, occured:occurred, goverment:government,
    neccessary:necessary, begining:beginning, wierd:weird, calender:calendar, libary:library, suprise:surprise,
    gaurd:guard, peice:piece
""")
)

FRAMES = (
    ("The teacher wrote the word", "on the board."),
    ("Please look up the word", "in the dictionary."),
    ("I often misspell the word", "in my letters."),
)

FAMILIES = computed(
    mend_agreement,
    mend_article,
    capitals_and_stop,
    into_past,
    into_future,
    into_negative,
    into_question,
    into_passive,
    join_sentences,
    find_part,
    replace_name,
    spelling,
)
