"""Reading of small texts: extraction, classification and questions whose answers are known by construction."""

from random import Random

from data.families.family import Row, article, computed, listed
from data.families.lists import (
    CATEGORIES,
    CLOTHES,
    COLOURS,
    COUNTABLE,
    FRUITS,
    MONTHS,
    NAMES,
    PLACES,
    THINGS,
    TOOLS,
    WEEKDAYS,
)

JOBS = listed("""
    teacher, nurse, farmer, baker, driver, pilot, painter, lawyer, plumber, writer, singer, dentist, gardener,
    chef
""")
TOWNS = listed("Rome, Paris, Oslo, Cairo, Lima, Delhi, Dublin, Tokyo, Vienna, Lisbon, Prague, Boston")
SUBJECTS = ("meal", "film", "book", "hotel", "concert", "trip", "game", "service", "phone", "course")
GOOD = (
    "I loved every minute of the {}.",
    "The {} was wonderful and I would recommend it to anyone.",
    "What a fantastic {}, far better than I expected!",
    "The {} made me smile the whole day.",
    "Great value, and the {} could not have been better.",
)
BAD = (
    "The {} was a complete waste of money.",
    "I was very disappointed by the {}.",
    "What a terrible {}, I will never come back.",
    "The {} was boring and far too expensive.",
    "Nothing about the {} worked as promised.",
)


def extract_detail(random: Random) -> Row:
    name, job, town, year = (
        random.choice(NAMES),
        random.choice(JOBS),
        random.choice(TOWNS),
        random.randint(1985, 2020),
    )
    text = f"{name} is {article(job)} from {town} and began to work there in {year}."
    what, answer = random.choice((("person", name), ("town", town), ("year", str(year)), ("profession", job)))
    ask = random.choice(("Extract the {w} from the text.", "Which {w} is mentioned in the sentence?"))
    return Row(ask.format(w=what), text, f"The {what} is {answer}.")


def meeting_details(random: Random) -> Row:
    day, hour, month = random.choice(WEEKDAYS), random.randint(8, 18), random.choice(MONTHS)
    date, place = random.randint(1, 28), random.choice(PLACES)
    text = f"The next meeting takes place on {day}, {date} {month}, at {hour}:30 in front of {place}."
    what, answer = random.choice(
        (
            ("When is the meeting?", f"It is on {day}, {date} {month}, at {hour}:30."),
            ("Where is the meeting?", f"It is in front of {place}."),
            ("On which day of the week is the meeting?", f"It is on {day}."),
        )
    )
    return Row(f"Answer the question from the text: {what}", text, answer)


def review_sentiment(random: Random) -> Row:
    label, texts = random.choice((("positive", GOOD), ("negative", BAD)))
    text = random.choice(texts).format(random.choice(SUBJECTS))
    ask = random.choice(
        (
            "Classify the review as positive or negative.",
            "Is the sentiment of this sentence positive or negative?",
        )
    )
    return Row(ask, text, f"The sentiment is {label}.")


def who_has_what(random: Random) -> Row:
    people, things = random.sample(NAMES, 3), random.sample(THINGS, 3)
    text = f"{people[0]} brought the {things[0]}, {people[1]} the {things[1]} and {people[2]} the {things[2]}."
    pick = random.randrange(3)
    if random.random() < 0.5:
        return Row(f"Who brought the {things[pick]}?", text, f"{people[pick]} brought the {things[pick]}.")
    return Row(f"What did {people[pick]} bring?", text, f"{people[pick]} brought the {things[pick]}.")


def true_or_false(random: Random) -> Row:
    name, colour, piece = random.choice(NAMES), random.choice(COLOURS), random.choice(CLOTHES)
    other = random.choice([c for c in COLOURS if c != colour])
    place = random.choice(PLACES)
    text = f"{name} wore {article(colour)} {piece} on the way to {place}."
    said = random.choice((colour, other))
    answer = "True" if said == colour else "False"
    return Row(f"True or false: the {piece} was {said}.", text, f"{answer}, the text says the {piece} was {colour}.")


def order_of_events(random: Random) -> Row:
    name, places = random.choice(NAMES), random.sample(PLACES, 3)
    text = f"{name} went to {places[0]} first, then to {places[1]} and last to {places[2]}."
    word, pick = random.choice((("first", 0), ("last", 2)))
    return Row(f"Where did {name} go {word}?", text, f"{name} went to {places[pick]} {word}.")


def compare_people(random: Random) -> Row:
    first, second, third = random.sample(NAMES, 3)
    word, most, least = random.choice(
        (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))
    )
    text = f"{first} is {word} than {second}. {second} is {word} than {third}."
    asked, answer = random.choice(((most, first), (least, third)))
    return Row(f"Who is the {asked}?", text, f"{answer} is the {asked}.")


def count_in_text(random: Random) -> Row:
    name = random.choice(NAMES)
    kind = random.choice(("fruit", "tool", "piece of clothing"))
    pool = {"fruit": FRUITS, "tool": TOOLS, "piece of clothing": CLOTHES}[kind]
    items = random.sample(pool, random.randint(2, 5))
    text = f"{name} bought {', '.join(article(item) for item in items[:-1])} and {article(items[-1])}."
    return Row(f"How many things did {name} buy?", text, f"{name} bought {len(items)} things.")


def make_list(random: Random) -> Row:
    items = random.sample(CATEGORIES[random.choice(COUNTABLE)], 3)
    text = f"We need {article(items[0])}, {article(items[1])} and {article(items[2])}."
    ask = random.choice(
        ("Write the things that are needed as a numbered list.", "Turn the sentence into a numbered list.")
    )
    return Row(ask, text, "\n".join(f"{i}. {item.capitalize()}" for i, item in enumerate(items, start=1)))


def fill_blank(random: Random) -> Row:
    sentence, word, others = random.choice(BLANKS)
    choices = [word, *others.split()]
    random.shuffle(choices)
    ask = random.choice(("Fill in the blank with the right word.", "Choose the word that completes the sentence."))
    return Row(f"{ask} Words: {', '.join(choices)}.", sentence, sentence.replace("___", word))


BLANKS = (
    ("She put the letter into an ___.", "envelope", "oven umbrella"),
    ("He used a ___ to cut the bread.", "knife", "pillow ladder"),
    ("The birds built a ___ in the tree.", "nest", "road clock"),
    ("We need an umbrella because it is ___.", "raining", "singing sleeping"),
    ("The baby is ___ because it is tired.", "crying", "driving reading"),
    ("Please ___ the door when you leave.", "close", "drink cook"),
    ("They crossed the river on a ___.", "bridge", "spoon carpet"),
    ("The doctor works in a ___.", "hospital", "stadium forest"),
    ("Bees make ___.", "honey", "paper glass"),
    ("In winter the lake turns to ___.", "ice", "sand bread"),
    ("The farmer grows ___ in the field.", "wheat", "shoes stars"),
    ("He forgot his ___ and could not see well.", "glasses", "gloves plates"),
)

FAMILIES = computed(
    extract_detail,
    meeting_details,
    review_sentiment,
    who_has_what,
    true_or_false,
    order_of_events,
    compare_people,
    count_in_text,
    make_list,
    fill_blank,
)
