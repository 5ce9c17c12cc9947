"""Little word problems; every answer is computed and shows its step."""

from random import Random

from data.families.family import Row, computed
from data.families.lists import NAMES, THINGS


def gain_and_loss(random: Random) -> Row:
    name, things = random.choice(NAMES), random.choice(THINGS)
    have, gain = random.randint(5, 40), random.randint(3, 30)
    lose = random.randint(2, have + gain - 1)
    ask = (
        f"{name} has {have} {things}, finds {gain} more and gives {lose} away. How many {things} does {name} have now?"
    )
    left = have + gain - lose
    return Row(ask, output=f"{name} has {have} + {gain} - {lose} = {left} {things}.")


def shopping(random: Random) -> Row:
    name, things = random.choice(NAMES), random.choice(THINGS)
    count, price = random.randint(2, 12), random.randint(2, 9)
    ask = f"{name} buys {count} {things} for ${price} each. How much does {name} pay in total?"
    return Row(ask, output=f"{name} pays {count} × ${price} = ${count * price}.")


def change_back(random: Random) -> Row:
    name = random.choice(NAMES)
    paid = random.choice((10, 20, 50))
    cost = random.randint(2, paid - 1)
    ask = f"{name} pays for a meal that costs ${cost} with a ${paid} note. How much change does {name} get?"
    return Row(ask, output=f"{name} gets ${paid} - ${cost} = ${paid - cost} in change.")


def sharing(random: Random) -> Row:
    things, people, each = random.choice(THINGS), random.randint(2, 9), random.randint(2, 12)
    total = people * each
    ask = f"{total} {things} are shared equally among {people} children. How many does each child get?"
    return Row(ask, output=f"Each child gets {total} / {people} = {each} {things}.")


def journey(random: Random) -> Row:
    speed, hours = random.choice((40, 50, 60, 70, 80, 90)), random.randint(2, 7)
    vehicle = random.choice(("car", "bus", "train", "truck"))
    if random.random() < 0.5:
        ask = f"A {vehicle} travels at {speed} km per hour for {hours} hours. How far does it go?"
        return Row(ask, output=f"It travels {speed} × {hours} = {speed * hours} km.")
    ask = f"A {vehicle} covers {speed * hours} km in {hours} hours. What is its average speed?"
    return Row(ask, output=f"Its average speed is {speed * hours} / {hours} = {speed} km per hour.")


def ages(random: Random) -> Row:
    older, younger = random.sample(NAMES, 2)
    age, gap = random.randint(5, 40), random.randint(2, 12)
    ask = f"{younger} is {age} years old. {older} is {gap} years older. How old is {older}?"
    return Row(ask, output=f"{older} is {age} + {gap} = {age + gap} years old.")


def saving(random: Random) -> Row:
    name, week, weeks = random.choice(NAMES), random.randint(3, 25), random.randint(3, 12)
    ask = f"{name} saves ${week} every week. How much has {name} saved after {weeks} weeks?"
    return Row(ask, output=f"After {weeks} weeks {name} has saved {week} × {weeks} = ${week * weeks}.")


def discount(random: Random) -> Row:
    item = random.choice(("coat", "lamp", "chair", "bag", "radio", "clock", "jacket"))
    price, percent = 20 * random.randint(1, 12), random.choice((10, 20, 25, 50))
    off = price * percent // 100
    ask = f"A {item} costs ${price} and is reduced by {percent}%. What is the new price?"
    return Row(ask, output=f"The discount is ${off}, so the new price is ${price} - ${off} = ${price - off}.")


FAMILIES = computed(gain_and_loss, shopping, change_back, sharing, journey, ages, saving, discount)
