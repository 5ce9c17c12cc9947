"""Units, dates and clocks; every answer is computed."""

from calendar import isleap, monthrange
from datetime import date, datetime, timedelta
from random import Random

from data.families.family import Row, computed
from data.families.lists import MONTHS, WEEKDAYS

CONVERSIONS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("feet", "inches", 12),
    ("yards", "feet", 3),
    ("kilograms", "grams", 1000),
    ("tonnes", "kilograms", 1000),
    ("pounds", "ounces", 16),
    ("litres", "millilitres", 1000),
    ("gallons", "quarts", 4),
)
"""(large unit, small unit, how many of the small one a large one holds)"""

SPANS = (("hours", "minutes", 60), ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7))


def convert_down(random: Random) -> Row:
    large, small, factor = random.choice(CONVERSIONS)
    n = random.randint(2, 30)
    ask = random.choice(("Convert {n} {a} to {b}.", "How many {b} are {n} {a}?"))
    return Row(ask.format(n=n, a=large, b=small), output=f"{n} {large} are {n * factor} {small}.")


def convert_up(random: Random) -> Row:
    large, small, factor = random.choice(CONVERSIONS)
    n = random.randint(2, 20)
    ask = random.choice(("Convert {n} {b} to {a}.", "Express {n} {b} in {a}."))
    return Row(ask.format(n=n * factor, a=large, b=small), output=f"{n * factor} {small} are {n} {large}.")


def convert_time(random: Random) -> Row:
    large, small, factor = random.choice(SPANS)
    n = random.randint(2, 15)
    ask = random.choice(("How many {b} are there in {n} {a}?", "Change {n} {a} into {b}."))
    return Row(ask.format(n=n, a=large, b=small), output=f"There are {n * factor} {small} in {n} {large}.")


def temperature(random: Random) -> Row:
    celsius = 5 * random.randint(-4, 20)
    fahrenheit = celsius * 9 // 5 + 32
    if random.random() < 0.5:
        ask = f"Convert {celsius} degrees Celsius to Fahrenheit."
        return Row(ask, output=f"{celsius} degrees Celsius is {fahrenheit} degrees Fahrenheit.")
    ask = f"Convert {fahrenheit} degrees Fahrenheit to Celsius."
    return Row(ask, output=f"{fahrenheit} degrees Fahrenheit is {celsius} degrees Celsius.")


def weekday_after(random: Random) -> Row:
    today, days = random.randrange(7), random.randint(2, 30)
    ask = f"If today is {WEEKDAYS[today]}, what day of the week will it be in {days} days?"
    return Row(ask, output=f"In {days} days it will be {WEEKDAYS[(today + days) % 7]}.")


def date_after(random: Random) -> Row:
    start = date(2023, 1, 1) + timedelta(days=random.randrange(365))
    days = random.randint(3, 40)
    if random.random() < 0.5:
        ask, end = f"What date is {days} days after {day_and_month(start)}?", start + timedelta(days=days)
        return Row(f"{ask} The year is not a leap year.", output=f"It is {day_and_month(end)}.")
    ask, end = f"What date is {days} days before {day_and_month(start)}?", start - timedelta(days=days)
    return Row(f"{ask} The year is not a leap year.", output=f"It is {day_and_month(end)}.")


def clock_after(random: Random) -> Row:
    start = datetime(2023, 1, 1, random.randint(6, 18), random.choice((0, 10, 15, 20, 30, 45)))
    minutes = random.choice((20, 25, 35, 40, 50, 75, 90, 120, 150))
    event = random.choice(("A film", "A lesson", "A meeting", "A concert", "A match", "A train ride"))
    ask = f"{event} starts at {start:%H:%M} and lasts {minutes} minutes. When does it end?"
    return Row(ask, output=f"It ends at {start + timedelta(minutes=minutes):%H:%M}.")


def leap_year(random: Random) -> Row:
    year = random.randint(1804, 2096)
    ask = random.choice(("Is {y} a leap year?", "Decide whether the year {y} is a leap year."))
    if isleap(year):
        answer = f"Yes, {year} is a leap year, so February has 29 days."
    else:
        answer = f"No, {year} is not a leap year, so February has 28 days."
    return Row(ask.format(y=year), output=answer)


def days_in_months(random: Random) -> Row:
    first = random.randrange(12)
    months = [(first + i) % 12 for i in range(random.randint(2, 4))]
    days = [monthrange(2023, month + 1)[1] for month in months]
    named = ", ".join(MONTHS[month] for month in months)
    ask = random.choice(("How many days do these months have together?", "Add up the days of the following months."))
    return Row(f"{ask} It is not a leap year.", named, f"{' + '.join(map(str, days))} = {sum(days)} days.")


def day_and_month(day: date) -> str:
    """The date as '5 March'."""
    return f"{day.day} {MONTHS[day.month - 1]}"


FAMILIES = computed(
    convert_down,
    convert_up,
    convert_time,
    temperature,
    weekday_after,
    date_after,
    clock_after,
    leap_year,
    days_in_months,
)
