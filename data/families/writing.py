"""Open instructions whose answers the dense model writes: templates with slots, one family a function."""

from random import Random

from data.families.family import Row, article, written
from data.families.topics import (
    ACTIVITIES,
    APOLOGIES,
    BUSINESSES,
    CASUAL,
    CHARACTERS,
    DISHES,
    EMAILS,
    EVENTS,
    GOALS,
    HABITS,
    OPINIONS,
    PAIRS,
    PRODUCTS,
    PROFESSIONS,
    SCENES,
    SHORT_TEXTS,
    SKILLS,
    STORY_OPENINGS,
    SUBJECTS,
    TRIPS,
    WHYS,
    WILD_ANIMALS,
    WORDS,
)


def _ask(random: Random, slots: tuple[str, ...], *templates: str) -> Row:
    """An instruction without input: one of the templates with one of the slots in it."""
    return Row(random.choice(templates).format(random.choice(slots)))


def _about(random: Random, texts: tuple[str, ...], *instructions: str) -> Row:
    """One of the instructions, with one of the texts as its input."""
    return Row(random.choice(instructions), random.choice(texts))


def define_word(random: Random) -> Row:
    return _ask(random, WORDS, 'Define the word "{}" in one sentence.', 'What does the word "{}" mean?')


def use_word(random: Random) -> Row:
    return _ask(random, WORDS, 'Write a sentence with the word "{}".', 'Use the word "{}" in a sentence.')


def explain_subject(random: Random) -> Row:
    return _ask(random, SUBJECTS, "Explain {} in simple words.", "Explain {} to a ten-year-old child.")


def one_fact(random: Random) -> Row:
    return _ask(random, SUBJECTS, "Tell me one thing about {} that few people know.", "State one fact about {}.")


def importance(random: Random) -> Row:
    return _ask(random, SUBJECTS, "Why does it matter to know about {}?", "Say in two sentences why people study {}.")


def list_ideas(random: Random) -> Row:
    return _ask(random, EVENTS, "List three ideas for {}.", "Give me some ideas for {}.")


def invitation(random: Random) -> Row:
    return _ask(random, EVENTS, "Write a short invitation to {}.", "Invite a friend to {} in two sentences.")


def tips(random: Random) -> Row:
    return _ask(random, GOALS, "Give three tips on how to {}.", "What is the best way to {}?")


def motivate(random: Random) -> Row:
    return _ask(random, GOALS, "Write one sentence that encourages somebody to {}.", "Why should I try to {}?")


def first_steps(random: Random) -> Row:
    return _ask(random, SKILLS, "How does a beginner start to learn {}?", "Describe the first step in learning {}.")


def benefits(random: Random) -> Row:
    return _ask(random, HABITS, "What are the benefits of {}?", "Name two advantages of {}.")


def drawbacks(random: Random) -> Row:
    return _ask(random, HABITS, "What could be a disadvantage of {}?", "Name one difficulty with {}.")


def short_story(random: Random) -> Row:
    who, where = random.choice(CHARACTERS), random.choice(SCENES)
    ask = random.choice(("Write a very short story about {} in {}.", "Tell a story of three sentences about {} in {}."))
    return Row(ask.format(article(who), where))


def continue_story(random: Random) -> Row:
    return _about(
        random, STORY_OPENINGS, "Continue the story with two sentences.", "Write the next sentence of this story."
    )


def opening_line(random: Random) -> Row:
    who = random.choice(CHARACTERS)
    ask = random.choice(("Write the opening line of a novel about {}.", "Begin a tale about {} with one sentence."))
    return Row(ask.format(article(who)))


def describe_scene(random: Random) -> Row:
    return _ask(random, SCENES, "Describe {} in two sentences.", "What can one see and hear in {}?")


def poem(random: Random) -> Row:
    return _ask(random, SCENES, "Write a poem of four lines about {}.", "Write a short rhyme about {}.")


def email(random: Random) -> Row:
    return _ask(random, EMAILS, "Write a short email to {}.", "Draft a polite message to {}.")


def apology(random: Random) -> Row:
    return _ask(random, APOLOGIES, "Write a one-sentence apology for {}.", "How can I say sorry for {}?")


def compare(random: Random) -> Row:
    return _ask(
        random, PAIRS, "What is the difference between {}?", "Compare {} in two sentences.", "How are {} alike?"
    )


def product_description(random: Random) -> Row:
    return _ask(random, PRODUCTS, "Write a short product description for {}.", "Describe {} to a customer.")


def slogan(random: Random) -> Row:
    return _ask(random, BUSINESSES, "Write a slogan for {}.", "Think of a catchy advertising line for {}.")


def name_ideas(random: Random) -> Row:
    return _ask(random, BUSINESSES, "Suggest three names for {}.", "What would be a good name for {}?")


def describe_job(random: Random) -> Row:
    return _ask(random, PROFESSIONS, "What does {} do at work?", "Describe the job of {} in two sentences.")


def interview_question(random: Random) -> Row:
    return _ask(random, PROFESSIONS, "Write an interview question for {}.", "What would you ask {} in an interview?")


def animal_facts(random: Random) -> Row:
    return _ask(random, WILD_ANIMALS, "Tell me something interesting about {}.", "Describe {} in two sentences.")


def dish(random: Random) -> Row:
    return _ask(random, DISHES, "What do I need to make {}?", "Explain briefly how to cook {}.")


def why_question(random: Random) -> Row:
    return _ask(random, WHYS, "Why {}?", "Answer briefly: why {}?")


def opinion(random: Random) -> Row:
    return _ask(
        random, OPINIONS, "Should {}? Answer in two sentences.", "Give one argument on the question: should {}?"
    )


def free_time(random: Random) -> Row:
    return _ask(random, ACTIVITIES, "What makes {} fun? Answer in two sentences.", "What should I bring along for {}?")


def travel_reasons(random: Random) -> Row:
    return _ask(random, TRIPS, "Why is {} worth a visit?", "Suggest two things to do on a trip to {}.")


def rewrite_formal(random: Random) -> Row:
    return _about(random, CASUAL, "Rewrite the sentence in formal language.", "Make this message more polite.")


def summarize(random: Random) -> Row:
    return _about(
        random,
        SHORT_TEXTS,
        "Summarize the text in one sentence.",
        "What is the main idea of this text?",
        "Shorten this text.",
    )


def headline(random: Random) -> Row:
    return _about(
        random, SHORT_TEXTS, "Write a headline for the text.", "Give the text a short title.", "Find a fitting title."
    )


FAMILIES = written(
    define_word,
    use_word,
    explain_subject,
    one_fact,
    importance,
    list_ideas,
    invitation,
    tips,
    motivate,
    first_steps,
    benefits,
    drawbacks,
    short_story,
    continue_story,
    opening_line,
    describe_scene,
    poem,
    email,
    apology,
    compare,
    product_description,
    slogan,
    name_ideas,
    describe_job,
    interview_question,
    animal_facts,
    dish,
    why_question,
    opinion,
    free_time,
    travel_reasons,
    rewrite_formal,
    summarize,
    headline,
)
