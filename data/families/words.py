"""Words and strings; every answer is computed or looked up in a table written here."""

from random import Random

from data.families.family import Row, article, computed, listed
from data.families.lists import CATEGORIES, COUNTABLE

PLAIN_WORDS = listed("""
    garden, window, bridge, candle, silver, winter, summer, planet, market, kitchen, basket, letter, mirror,
    forest, pocket, castle, dragon, engine, island, jungle, ladder, magnet, needle, orange, pepper, rocket,
    saddle, temple, valley, wagon, yellow, anchor, bottle, camera, danger, flower, guitar, hammer
""")

PALINDROMES = listed("level, radar, civic, madam, refer, rotor, kayak, noon, stats, tenet, deed, peep")

OPPOSITES = dict(
    pair.split(":")
    for pair in listed("""
    hot:cold, big:small, fast:slow, happy:sad, light:dark, old:young, high:low, early:late, full:empty,
    hard:soft, loud:quiet, strong:weak, rich:poor, open:closed, clean:dirty, near:far, wet:dry, thick:thin,
    wide:narrow, deep:shallow, sweet:bitter, safe:dangerous, cheap:expensive, brave:cowardly, polite:rude,
    ancient:modern
""")
)

SYNONYMS = dict(
    pair.split(":")
    for pair in listed("""
    big:large, happy:glad, fast:quick, begin:start, end:finish, smart:clever, angry:furious, sad:unhappy,
    beautiful:pretty, difficult:hard, simple:easy, quiet:silent, brave:courageous, rich:wealthy, tired:weary,
    strange:odd, correct:right, answer:reply, buy:purchase, help:assist, build:construct, choose:select,
    frightened:scared, funny:amusing, huge:enormous, tiny:little, honest:truthful, rapid:swift
""")
)

PLURALS = dict(
    pair.split(":")
    for pair in listed("""
    child:children, mouse:mice, foot:feet, tooth:teeth, goose:geese, man:men, woman:women, person:people,
    leaf:leaves, knife:knives, wolf:wolves, shelf:shelves, city:cities, baby:babies, story:stories, box:boxes,
    bus:buses, dish:dishes, church:churches, potato:potatoes, tomato:tomatoes, hero:heroes, sheep:sheep,
    fish:fish, table:tables, window:windows, key:keys, toy:toys, class:classes, lady:ladies
""")
)

PAST_TENSES = dict(
    pair.split(":")
    for pair in listed("""
    go:went, see:saw, eat:ate, run:ran, write:wrote, take:took, give:gave, come:came, buy:bought, think:thought,
    bring:brought, catch:caught, teach:taught, sing:sang, swim:swam, drink:drank, begin:began, break:broke,
    speak:spoke, choose:chose, drive:drove, fly:flew, know:knew, grow:grew, throw:threw, wear:wore, find:found,
    tell:told, sell:sold, build:built, keep:kept, sleep:slept
""")
)

RHYMES = (
    "cat hat bat mat",
    "light night right bright",
    "blue shoe true glue",
    "rain train brain chain",
    "ball tall wall fall",
    "bear chair hair square",
    "cake lake snake rake",
    "ring king wing spring",
    "bone stone phone throne",
    "dish fish wish",
    "boat goat coat float",
    "tree bee knee sea",
)


def reverse_word(random: Random) -> Row:
    word = random.choice(PLAIN_WORDS)
    ask = random.choice(('Write the word "{w}" backwards.', 'Reverse the letters of the word "{w}".'))
    return Row(ask.format(w=word), output=word[::-1])


def count_letters(random: Random) -> Row:
    word = random.choice(PLAIN_WORDS)
    letter = random.choice(sorted(set(word)))
    if random.random() < 0.4:
        return Row(f'How many letters does the word "{word}" have?', output=f'"{word}" has {len(word)} letters.')
    count = word.count(letter)
    ask = f'How many times does the letter "{letter}" appear in the word "{word}"?'
    return Row(ask, output=f'The letter "{letter}" appears {count} time{"" if count == 1 else "s"} in "{word}".')


def count_words(random: Random) -> Row:
    words = random.sample(PLAIN_WORDS, random.randint(3, 9))
    ask = random.choice(("Count the words in the list.", "How many words does this list contain?"))
    return Row(ask, ", ".join(words), f"The list contains {len(words)} words.")


def upper_case(random: Random) -> Row:
    words = " ".join(random.sample(PLAIN_WORDS, random.randint(2, 4)))
    kind, change = random.choice((("capital letters", str.upper), ("title case", str.title)))
    return Row(f"Write the following words in {kind}.", words, change(words))


def sort_words(random: Random) -> Row:
    words = random.sample(PLAIN_WORDS, random.randint(3, 6))
    ask = random.choice(("Sort these words alphabetically.", "Put the words in alphabetical order."))
    return Row(ask, ", ".join(words), ", ".join(sorted(words)))


def longest_word(random: Random) -> Row:
    while True:
        words = random.sample((*PLAIN_WORDS, *OPPOSITES, *PAST_TENSES), 4)
        if len({len(word) for word in words}) == 4:
            break
    kind, pick = random.choice((("longest", max), ("shortest", min)))
    answer = pick(words, key=len)
    return Row(f"Which word in the list is the {kind}?", ", ".join(words), f'The {kind} word is "{answer}".')


def remove_duplicates(random: Random) -> Row:
    words = random.sample(PLAIN_WORDS, random.randint(3, 4))
    mixed = words + random.choices(words, k=2)
    random.shuffle(mixed)
    ask = random.choice(("Remove the duplicates from the list.", "Keep each word of the list only once."))
    return Row(ask, ", ".join(mixed), ", ".join(dict.fromkeys(mixed)))


def initials(random: Random) -> Row:
    words = random.sample(PLAIN_WORDS, random.randint(3, 5))
    ask = random.choice(("Form an acronym from these words.", "Write the first letters of these words as one acronym."))
    return Row(ask, " ".join(word.capitalize() for word in words), "".join(word[0].upper() for word in words))


def palindrome(random: Random) -> Row:
    word = random.choice(PALINDROMES if random.random() < 0.5 else PLAIN_WORDS)
    ask = random.choice(('Is the word "{w}" a palindrome?', 'Does "{w}" read the same backwards?'))
    if word == word[::-1]:
        return Row(ask.format(w=word), output=f'Yes, "{word}" reads the same in both directions.')
    return Row(ask.format(w=word), output=f'No, backwards it reads "{word[::-1]}".')


def opposite(random: Random) -> Row:
    word, other = random.choice(sorted(OPPOSITES.items()))
    if random.random() < 0.5:
        word, other = other, word
    ask = random.choice(('What is the opposite of "{w}"?', 'Give an antonym of the word "{w}".'))
    return Row(ask.format(w=word), output=f'The opposite of "{word}" is "{other}".')


def synonym(random: Random) -> Row:
    word, other = random.choice(sorted(SYNONYMS.items()))
    ask = random.choice(
        ('Give a synonym for "{w}".', 'Name a word that means the same as "{w}".', 'What is another word for "{w}"?')
    )
    return Row(ask.format(w=word), output=f'A synonym for "{word}" is "{other}".')


def plural(random: Random) -> Row:
    word, many = random.choice(sorted(PLURALS.items()))
    ask = random.choice(('What is the plural of "{w}"?', 'Write the plural form of the noun "{w}".'))
    return Row(ask.format(w=word), output=f'The plural of "{word}" is "{many}".')


def past_tense(random: Random) -> Row:
    verb, past = random.choice(sorted(PAST_TENSES.items()))
    ask = random.choice(('What is the past tense of "{w}"?', 'Give the past tense of the verb "{w}".'))
    return Row(ask.format(w=verb), output=f'The past tense of "{verb}" is "{past}".')


def rhyme(random: Random) -> Row:
    group = random.choice(RHYMES).split()
    word, *others = random.sample(group, 3)
    ask = random.choice(('Name two words that rhyme with "{w}".', 'Find two rhymes for the word "{w}".'))
    return Row(ask.format(w=word), output=f'Two words that rhyme with "{word}" are "{others[0]}" and "{others[1]}".')


def categorize(random: Random) -> Row:
    category = random.choice(sorted(CATEGORIES))
    word = random.choice(CATEGORIES[category])
    ask = random.choice(("Which category does the word belong to: {a} or {b}?", "Is this {a1} or {b1}?"))
    other = random.choice(sorted(set(CATEGORIES) - {category}))
    a, b = random.sample((category, other), 2)
    return Row(
        ask.format(a=a, b=b, a1=article(a), b1=article(b)),
        word.capitalize(),
        f"{_one(word, category).capitalize()} is {article(category)}.",
    )


def odd_one_out(random: Random) -> Row:
    category, other = random.sample(sorted(CATEGORIES), 2)
    odd = random.choice(CATEGORIES[other])
    words = random.sample(CATEGORIES[category], 3) + [odd]
    random.shuffle(words)
    ask = random.choice(("Find the odd one out.", "Which word does not belong with the others?"))
    why = f"{_one(odd, other)} is {article(other)}, while the others are each {article(category)}"
    return Row(ask, ", ".join(words), f"{odd.capitalize()} does not belong, because {why}.")


def group_words(random: Random) -> Row:
    first, second = random.sample(sorted(CATEGORIES), 2)
    firsts, seconds = random.sample(CATEGORIES[first], 2), random.sample(CATEGORIES[second], 2)
    words = firsts + seconds
    random.shuffle(words)
    ask = f"Sort the words into two groups: {first} and {second}."
    answer = "; ".join(
        f"{name}: {', '.join(word for word in words if word in members)}"
        for name, members in ((first, firsts), (second, seconds))
    )
    return Row(ask, ", ".join(words), f"{answer[0].upper()}{answer[1:]}.")


def _one(word: str, category: str) -> str:
    """The word as the subject of a sentence."""
    return article(word) if category in COUNTABLE else word


FAMILIES = computed(
    reverse_word,
    count_letters,
    count_words,
    upper_case,
    sort_words,
    longest_word,
    remove_duplicates,
    initials,
    palindrome,
    opposite,
    synonym,
    plural,
    past_tense,
    rhyme,
    categorize,
    odd_one_out,
    group_words,
)
