"""Slots of the open instructions: what they ask about. Written for this project."""

from data.families.family import listed

WORDS = listed("""
    courage, patience, harvest, journey, neighbour, curious, fragile, generous, ancient, whisper, horizon,
    balance, recipe, shelter, promise, wisdom, treasure, gentle, stubborn, gather, celebrate, climate, citizen,
    budget, hobby, rumour, routine, orchard, compass, lantern, apology, talent, custom, storm, envy, hope,
    loyal, noble, rescue, wander
""")

SUBJECTS = listed("""
    gravity, photosynthesis, electricity, democracy, evolution, inflation, recycling, geometry, the water cycle,
    magnetism, friction, sound waves, the immune system, digestion, volcanoes, earthquakes, the tides, climate
    change, solar energy, computer programming, grammar, statistics, astronomy, economics, philosophy,
    nutrition, genetics, fractions, poetry, chemistry, trade, taxes, weather forecasts, the human heart, the
    internet, money, history, vaccination, biodiversity
""")

EVENTS = listed("""
    a birthday party, a school picnic, a garden party, a charity run, a wedding, a family reunion, a book club
    evening, a farewell party, a science fair, a neighbourhood festival, a movie night, a game night, a cooking
    class, a summer camp, a costume party, a housewarming party, a talent show, an art exhibition, a sports day,
    a bake sale, a music evening, a graduation dinner, a New Year's party, a class trip, a clean-up day
""")

GOALS = listed("""
    save money, sleep better, learn a language, stay healthy, make new friends, be more punctual, read more
    books, reduce stress, eat more vegetables, keep a room tidy, prepare for an exam, speak in public, save
    water, write a good letter, use less plastic, grow tomatoes, remember names, train a puppy, wake up early,
    take better photographs, cook at home, stop wasting time, become a better listener, save electricity,
    improve handwriting, plan a trip, find a hobby, drink more water, stay calm in traffic, run a long distance
""")

SKILLS = listed("""
    the piano, swimming, chess, knitting, painting, photography, gardening, pottery, sailing, juggling, the
    guitar, public speaking, coding, baking, dancing, skiing, yoga, sewing, archery, calligraphy, singing,
    cycling, fishing, first aid, carpentry, bird watching, origami, rock climbing, sign language, magic tricks
""")

HABITS = listed("""
    walking every day, reading before bed, keeping a diary, eating breakfast, working from home, riding a
    bicycle to work, learning an instrument, having a pet, getting up early, cooking for oneself, meditation,
    drinking tea, living in a big city, living in a village, shopping online, planting trees, volunteering,
    travelling by train, sharing a flat, playing team sports, taking notes, making to-do lists, buying
    second-hand clothes, using public transport, studying in a group, taking short breaks, growing vegetables,
    going to museums
""")

CHARACTERS = listed("""
    young wizard, lost kitten, brave firefighter, lonely robot, curious child, retired sailor, clever fox, shy
    giant, forgetful professor, little dragon, travelling musician, baker, old lighthouse keeper, honest thief,
    young inventor, tired knight, talking tree, explorer, grandmother, snowman, street artist, sleepy bear,
    singer, detective
""")

SCENES = listed("""
    a quiet forest, a busy market, a small village, an old library, a snowy mountain, a sunny beach, a crowded
    train, a rainy city, a dark cave, a large garden, a harbour at night, a desert, a kitchen in the morning, an
    empty school, a castle, a mountain lake, a field of sunflowers, a stormy sea, a toy shop, a farm in spring,
    a foggy bridge, a lonely island, an autumn park, a winter evening
""")

STORY_OPENINGS = (
    "Nora found an old key under the kitchen floor.",
    "The lights went out just as the train entered the tunnel.",
    "Every evening a strange bird sat on the roof of the school.",
    "Oscar had never seen so much snow in his life.",
    "The letter had no stamp and no name on it.",
    "A small boat drifted slowly toward the shore.",
    "When the circus left town, one elephant stayed behind.",
    "The baker opened his oven and could not believe his eyes.",
    "Nobody in the village remembered who had built the tower.",
    "Tara heard music coming from the empty house next door.",
    "The robot woke up and asked for a cup of tea.",
    "On the last day of summer the lake turned green.",
    "Felix pressed the red button, although he had been told not to.",
    "The map showed an island that should not exist.",
    "My grandfather kept a suitcase that nobody was allowed to open.",
    "The cat came home with a golden ring in its mouth.",
    "It was raining when the stranger knocked on the door.",
    "The school bus took a wrong turn and stopped in a forest.",
    "Iris planted the blue seed and waited.",
    "The clock in the square struck thirteen.",
    "A whale had lost its way and swam up the river.",
    "Two brothers shared one bicycle and a secret.",
    "The snowman moved its head when nobody was looking.",
    "Grace opened the book and the pages were blank.",
)

EMAILS = listed("""
    a teacher who should move an exam, a landlord about a broken heater, a colleague to ask for a report, a
    hotel to book a room, a shop about a late parcel, a friend who moved away, a library about a lost book, a
    neighbour about loud music, a manager to ask for a day off, a dentist to change an appointment, a restaurant
    to reserve a table, a customer whose order is late, a club to become a member, a company to apply for a job,
    a coach to cancel a training, a bank about a lost card, a school about a sick child, an airline about lost
    luggage, a professor to ask for advice, a team to announce a meeting, a guest with directions to the house,
    a supplier to order paper, a bus company about a forgotten bag, a museum to ask about opening hours, a
    cousin to plan a visit
""")

APOLOGIES = listed("""
    being late, forgetting a birthday, breaking a cup, missing a meeting, losing a book, making noise at night,
    sending the wrong file, stepping on somebody's foot, a cold meal, cancelling a dinner, not calling back, a
    spelling mistake in a letter, taking the wrong coat, waking the baby, spilling coffee, a rude remark, a
    wrong bill, a delayed delivery, forgetting the keys, burning the cake, interrupting a speech, arriving
    without a gift, a slow answer, denting the car, letting the dog out
""")

PAIRS = listed("""
    cats and dogs, tea and coffee, books and films, trains and planes, summer and winter, rivers and lakes,
    cities and villages, apples and pears, lions and tigers, bread and cake, stars and planets, novels and
    poems, pianos and guitars, gold and silver, oceans and deserts, bees and wasps, frogs and toads, email and
    letters, football and tennis, butter and oil, wood and steel, doctors and nurses, moon and sun, hills and
    mountains, wool and cotton, glass and plastic, radio and television, singing and speaking, rain and snow,
    bicycles and cars
""")

PRODUCTS = listed("""
    a solar lamp, a folding bicycle, a wooden toy train, a water bottle that keeps drinks cold, a wool blanket,
    a travel backpack, a reading lamp, a pocket umbrella, a set of garden tools, a kitchen knife, a rain jacket,
    a scented candle, a running shoe, a puzzle for children, a coffee grinder, a desk made of oak, a silent
    keyboard, a pair of warm gloves, a tent for two people, a bird feeder, a notebook of recycled paper, an
    electric kettle, a hammock, a picnic basket, a board game for families, a bamboo toothbrush, a music box, a
    cat bed
""")

BUSINESSES = listed("""
    a small bakery, a bicycle shop, a flower shop, a coffee bar, a dance school, a bookshop, a pet clinic, a toy
    store, a vegetarian restaurant, a travel agency, a yoga studio, an ice cream parlour, a cleaning service, a
    garden centre, a music school, a second-hand shop, a computer repair service, a hair salon, a fishing club,
    a taxi company, a soap maker, a pizza place, a photo studio, a climbing hall, a language school, a farm
    shop, a tea house, a shoe repair shop
""")

DISHES = listed("""
    tomato soup, pancakes, an omelette, fried rice, a fruit salad, mashed potatoes, apple pie, vegetable curry,
    spaghetti with tomato sauce, a cheese sandwich, banana bread, chicken soup, lentil stew, garlic bread,
    roasted carrots, a green salad, chocolate cake, baked fish, rice pudding, stuffed peppers, potato salad,
    scrambled eggs, lemonade, oatmeal, mushroom risotto, corn bread
""")

PROFESSIONS = listed("""
    a nurse, a carpenter, a journalist, a pilot, a librarian, a chef, a firefighter, an architect, a judge, a
    farmer, a teacher, a plumber, a veterinarian, a baker, an astronaut, a translator, a photographer, a bus
    driver, an electrician, a gardener, a scientist, a tour guide, a tailor, an engineer, a lifeguard, a
    hairdresser, a postman, a musician, a dentist
""")

WILD_ANIMALS = listed("""
    penguins, dolphins, owls, bats, elephants, octopuses, honeybees, giraffes, kangaroos, sea turtles, wolves,
    ants, chameleons, hummingbirds, sharks, spiders, beavers, camels, polar bears, parrots, crocodiles,
    butterflies, hedgehogs, whales, squirrels, flamingos, snails, seals
""")

WHYS = listed("""
    do leaves change colour in autumn, is the sky blue, do people need sleep, do birds fly south in winter, does
    ice float on water, do we have seasons, do cats purr, does bread rise, is sea water salty, do onions make us
    cry, do we yawn, does metal rust, do stars twinkle, is exercise healthy, do people keep pets, does the moon
    change its shape, do plants need sunlight, do we use calendars, is honesty important, do children play, does
    wood burn, do dogs bark, do people wear hats, do we celebrate birthdays, is teamwork useful, do clouds form,
    do bees visit flowers, do we brush our teeth
""")

OPINIONS = listed("""
    schools start later in the morning, every child learn to swim, cars be banned from city centres, homework be
    optional, shops close on Sundays, pupils wear uniforms, museums be free, people work four days a week,
    phones be forbidden at dinner, every house have a garden, libraries stay open at night, children have their
    own pocket money, plastic bags be forbidden, every pupil learn an instrument, dogs be allowed in
    restaurants, public transport be free, everybody learn to cook, exams be replaced by projects, robots do
    housework, zoos be closed, tourists pay an entrance fee to cities, voting be compulsory, meetings be
    shorter, old buildings be preserved
""")

ACTIVITIES = listed("""
    hiking with friends, painting outdoors, bird watching, baking with children, visiting a castle, a bicycle
    tour, swimming in a lake, a picnic by the river, gardening with a neighbour, collecting mushrooms, flying a
    kite, playing board games, visiting a flea market, a boat trip, building a sandcastle, stargazing, cleaning
    the attic, a walk through the old town, photographing flowers, fishing, making jam, camping in the woods,
    ice skating, a visit to the zoo
""")

TRIPS = listed("""
    a mountain village, the seaside, a big capital city, a national park, a desert oasis, a vineyard, a small
    island, an old harbour town, a winter resort, a famous museum, a medieval castle, a rain forest, a lake
    district, a river valley, a volcano, a farm, a waterfall, a historic battlefield, a botanical garden, a
    lighthouse, a fishing village, a cave, a hot spring, a Christmas market
""")

CASUAL = (
    "Hey, can you send me that file asap?",
    "I can't come tomorrow, got stuff to do.",
    "Your plan is kind of a mess, fix it.",
    "Give me the money back soon.",
    "What's up with my order?",
    "You guys were way too loud last night.",
    "I need the answer now.",
    "That idea is totally useless.",
    "Sorry, I forgot about the meeting.",
    "The food was gross and the waiter was slow.",
    "Tell your boss I quit.",
    "No way I'm paying that much.",
    "Can I swing by your office later?",
    "Gonna be late, start without me.",
    "This thing is broken, I want a new one.",
    "Thanks a bunch for the help!",
    "I guess we could talk about it sometime.",
    "Nobody told me the date had changed.",
    "Pick up the phone when I call you.",
    "Let me know if you're in or not.",
    "The room was freezing, do something.",
    "Don't touch my stuff again.",
    "I don't get what you mean.",
    "You messed up the numbers in the report.",
)

SHORT_TEXTS = (
    "The town library will stay open until ten in the evening from next month. Many students had asked for it, "
    "because they work during the day. Two new people will be hired.",
    "A farmer near the river has begun to grow lavender instead of corn. It needs less water, and visitors come to "
    "see the purple fields. He now sells soap and honey as well.",
    "After three days of heavy rain the old bridge had to be closed. Drivers must take a longer road through the "
    "hills. The mayor hopes that repairs will be finished by spring.",
    "Our school collected old phones for a month. More than four hundred were brought in. The metals inside will be "
    "recycled, and the money pays for new trees in the yard.",
    "Sleep helps the brain to store what was learned during the day. People who sleep too little forget more and "
    "make more mistakes. Doctors advise adults to sleep seven hours or more.",
    "The small theatre was close to closing, until its neighbours began to volunteer. They sell tickets, sew costumes "
    "and paint the stage. Last season every show was sold out.",
    "Bees have moved onto the roof of the city hall. Twelve hives stand there, and the honey is given to guests. "
    "Flowers in the nearby parks grow better since then.",
    "A new bus line connects the hospital with the station. It runs every ten minutes and costs no more than the old "
    "one. Nurses on the night shift are especially happy about it.",
    "Walking is one of the simplest forms of exercise. It costs nothing, needs no equipment and can be done almost "
    "anywhere. Half an hour a day already lowers the blood pressure.",
    "The lost dog was found after two weeks in a village forty miles away. A shopkeeper had fed it every morning. Its "
    "owner drove through the night to bring it home.",
    "Many tools in the repair cafe are older than the people who use them. Visitors bring lamps, toasters and trousers "
    "and learn to mend them. Little is thrown away.",
    "The first snow fell early this year and surprised the farmers. Some apples were still on the trees. Helpers came "
    "from the whole valley to save the harvest.",
    "A group of pupils built a weather station on the roof. It measures wind, rain and temperature every hour. The "
    "local newspaper now prints their numbers each day.",
    "Glass can be melted and shaped again without getting worse. That is why it is collected apart from other rubbish. "
    "A recycled bottle saves energy as well as sand.",
    "The chess club meets on Thursdays in the back room of the bakery. Its oldest member is ninety and still wins most "
    "games. Beginners are welcome and get a free roll.",
    "Because of the drought, the city asks people not to water their lawns. Gardens may be watered after sunset only. "
    "The rule ends when the lake has filled up again.",
    "The ferry to the island was replaced by a new electric one. It is quieter and can carry twenty cars. Passengers "
    "say that they can hear the gulls again.",
    "A baker noticed that much bread was thrown away in the evening. He now sells it for half the price after six. "
    "Students queue up, and hardly anything is left.",
    "The museum opened a room where everything may be touched. Blind visitors had helped to plan it. Children like it "
    "most of all, and the guards have got used to the noise.",
    "Old trains are being turned into small hotels at a station that is no longer used. Each carriage holds two rooms. "
    "Guests wake up to the sound of birds, not of engines.",
    "Researchers asked a thousand people how they learn new words. Those who wrote sentences of their own remembered "
    "more than those who read lists. Repeating them after a day helped as well.",
    "The market has moved from the square to the old factory. There is a roof now, and more room for the stalls. Some "
    "customers miss the view of the church.",
)
