"""Slot lists that several families share."""

from data.families.family import listed

NAMES = listed("""
    Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Iris, Jonas, Kate, Leo, Maria, Nora, Oscar, Paula,
    Quinn, Rosa, Sam, Tara, Victor, Wendy, Yusuf, Zoe, Amir, Bianca, Carlos, Dana, Elias, Fatima
""")

THINGS = listed("""
    apples, books, pencils, coins, stickers, marbles, oranges, cards, shells, stamps, cookies, flowers, eggs,
    buttons, tickets, candles, balloons, bottles, cups, plates
""")

PLACES = listed("""
    the park, the library, the market, the beach, the museum, the station, the school, the bakery, the garden
""")

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = listed("""
    January, February, March, April, May, June, July, August, September, October, November, December
""")

ANIMALS = listed("""
    dog, cat, horse, cow, sheep, lion, tiger, elephant, rabbit, wolf, fox, bear, monkey, goat, zebra, camel
""")
FRUITS = listed("""
    apple, banana, orange, grape, pear, peach, mango, lemon, cherry, plum, melon, kiwi, apricot, fig
""")
VEGETABLES = listed("""
    carrot, onion, potato, cabbage, radish, pumpkin, parsnip, cauliflower, turnip, leek, cucumber, beetroot
""")
COLOURS = listed("red, blue, green, yellow, purple, orange, brown, pink, black, white, grey")
VEHICLES = listed("""
    car, bus, train, bicycle, truck, boat, plane, tram, motorcycle, van, ferry, helicopter
""")
TOOLS = listed("hammer, saw, drill, screwdriver, wrench, axe, shovel, rake, trowel, chisel")
INSTRUMENTS = listed("piano, guitar, violin, drum, flute, trumpet, harp, cello, clarinet, saxophone")
CLOTHES = listed("shirt, jacket, scarf, hat, glove, sock, coat, dress, sweater, skirt, belt, boot")
FURNITURE = listed("chair, table, sofa, bed, desk, shelf, wardrobe, bench, stool, cupboard")
SPORTS = listed("""
    football, tennis, basketball, swimming, hockey, rugby, golf, volleyball, cricket, badminton
""")

CATEGORIES = {
    "animal": ANIMALS,
    "fruit": FRUITS,
    "vegetable": VEGETABLES,
    "vehicle": VEHICLES,
    "tool": TOOLS,
    "musical instrument": INSTRUMENTS,
    "piece of clothing": CLOTHES,
    "piece of furniture": FURNITURE,
    "sport": SPORTS,
}

COUNTABLE = tuple(name for name in CATEGORIES if name != "sport")
"""The categories whose members take an article."""
