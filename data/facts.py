"""Well-known facts as sentences to be completed, written for the task `bundled_facts`.

A group is a sentence with a gap for its subject, and its subjects with their answers; the wrong choices of one
subject are answers of others in the group, so they are of the same kind.
"""

from data.families.family import listed

GROUPS: dict[str, tuple[str, ...]] = {
    "The capital of {} is": listed("""
        France:Paris, Italy:Rome, Spain:Madrid, Germany:Berlin, Austria:Vienna, Russia:Moscow, Japan:Tokyo,
        China:Beijing, Egypt:Cairo, Greece:Athens, England:London, Ireland:Dublin, Portugal:Lisbon,
        Poland:Warsaw, Hungary:Budapest, Sweden:Stockholm, Norway:Oslo, Denmark:Copenhagen, Finland:Helsinki,
        Cuba:Havana, Turkey:Ankara, Iran:Tehran, Iraq:Baghdad, Kenya:Nairobi, Thailand:Bangkok, Belgium:Brussels,
        Canada:Ottawa, Mexico:Mexico City, Argentina:Buenos Aires, South Korea:Seoul
    """),
    "The city of {} is in": listed("""
        New York:America, Barcelona:Spain, Milan:Italy, Munich:Germany, Shanghai:China, Mumbai:India, Osaka:Japan,
        Sydney:Australia, Toronto:Canada, Manchester:England, Istanbul:Turkey, Marseille:France, Rio de Janeiro:Brazil,
        Glasgow:Scotland, Jerusalem:Israel, Johannesburg:South Africa
    """),
    "{} is a country in": listed("""
        Nigeria:Africa, Kenya:Africa, France:Europe, Germany:Europe, Sweden:Europe, China:Asia, Vietnam:Asia,
        Thailand:Asia, Brazil:South America, Peru:South America, Chile:South America, Ghana:Africa, Poland:Europe,
        Nepal:Asia, Canada:North America, Ethiopia:Africa
    """),
    "The main language spoken in {} is": listed("""
        France:French, Brazil:Portuguese, Germany:German, Italy:Italian, Mexico:Spanish, Japan:Japanese,
        China:Chinese, Russia:Russian, England:English, Egypt:Arabic, Greece:Greek, Poland:Polish, Sweden:Swedish,
        Turkey:Turkish, Korea:Korean, the Netherlands:Dutch
    """),
    "The currency of {} is the": listed("""
        Japan:yen, India:rupee, Russia:ruble, Mexico:peso, the United States:dollar, the United Kingdom:pound,
        Switzerland:franc, Germany:euro
    """),
    "A baby {} is called a": listed("""
        dog:puppy, cat:kitten, cow:calf, sheep:lamb, horse:foal, chicken:chick, bear:cub, frog:tadpole, duck:duckling,
        goat:kid
    """),
    "The animal that {} is the": listed("""
        barks:dog, meows:cat, gives us wool:sheep, has a long trunk:elephant, has a very long neck:giraffe,
        spins webs:spider, makes honey:bee, has black and white stripes:zebra, lays the eggs that we eat:chicken,
        carries its young in a pouch:kangaroo, has a hump and lives in the desert:camel, hoots at night:owl,
        is called the king of the jungle:lion, builds dams in rivers:beaver
    """),
    "The {} is a kind of": listed("""
        salmon:fish, eagle:bird, snake:reptile, whale:mammal, ant:insect, frog:amphibian, penguin:bird, shark:fish,
        lizard:reptile, butterfly:insect, bat:mammal, crocodile:reptile, sparrow:bird, mosquito:insect,
        dolphin:mammal, tuna:fish
    """),
    "A person who {} is called a": listed("""
        bakes bread:baker, flies an airplane:pilot, teaches at a school:teacher, grows crops:farmer,
        puts out fires:firefighter, treats sick people:doctor, cares for teeth:dentist, cuts hair:barber,
        plays the piano:pianist, writes novels:writer, repairs water pipes:plumber, works with wood:carpenter,
        defends people in court:lawyer, takes photographs:photographer, studies the stars:astronomer,
        sells meat:butcher
    """),
    "People {} with their": listed("""
        see:eyes, hear:ears, smell:nose, chew:teeth, walk:legs, think:brain, taste:tongue, write:hands
    """),
    "{} is made from": listed("""
        Cheese:milk, Wine:grapes, Bread:flour, Paper:wood, Glass:sand, Chocolate:cocoa, Steel:iron,
        Leather:animal skin, Cider:apples
    """),
    "The color of {} is": listed("""
        fresh grass:green, snow:white, blood:red, the clear sky:blue, coal:black, a ripe banana:yellow,
        chocolate:brown, a ripe strawberry:red
    """),
    "The chemical symbol for {} is": listed("""
        oxygen:O, hydrogen:H, carbon:C, nitrogen:N, gold:Au, iron:Fe, silver:Ag, sodium:Na, calcium:Ca, helium:He
    """),
    "The chemical formula {} stands for": listed("""
        H2O:water, CO2:carbon dioxide, NaCl:salt, O2:oxygen, CH4:methane, NH3:ammonia
    """),
    "The author of {} is": listed("""
        Romeo and Juliet:William Shakespeare, Pride and Prejudice:Jane Austen, Oliver Twist:Charles Dickens,
        War and Peace:Leo Tolstoy, The Adventures of Tom Sawyer:Mark Twain, Harry Potter:J. K. Rowling,
        The Lord of the Rings:J. R. R. Tolkien, The Old Man and the Sea:Ernest Hemingway,
        Don Quixote:Miguel de Cervantes, Animal Farm:George Orwell, Hamlet:William Shakespeare,
        Moby Dick:Herman Melville
    """),
    "The person who {} was": listed("""
        painted the Mona Lisa:Leonardo da Vinci, developed the theory of relativity:Albert Einstein,
        discovered gravity when an apple fell:Isaac Newton, invented the telephone:Alexander Graham Bell,
        proposed evolution by natural selection:Charles Darwin, sailed to America in 1492:Christopher Columbus,
        discovered penicillin:Alexander Fleming, discovered radium:Marie Curie,
        painted The Starry Night:Vincent van Gogh, invented the light bulb:Thomas Edison,
        first walked on the moon:Neil Armstrong, composed the Moonlight Sonata:Ludwig van Beethoven
    """),
    "The {} is in": listed("""
        Eiffel Tower:Paris, Statue of Liberty:New York, Colosseum:Rome, Great Wall:China, Taj Mahal:India,
        Kremlin:Moscow, Acropolis:Athens, Big Ben clock:London, Golden Gate Bridge:San Francisco,
        White House:Washington, Sahara desert:Africa, Great Barrier Reef:Australia
    """),
    "The month that comes right after {} is": listed("""
        January:February, March:April, April:May, May:June, June:July, July:August, August:September,
        September:October, October:November, November:December
    """),
    "The day that comes right after {} is": listed("""
        Monday:Tuesday, Tuesday:Wednesday, Wednesday:Thursday, Thursday:Friday, Friday:Saturday, Saturday:Sunday,
        Sunday:Monday
    """),
    "The name of a shape with {} sides is": listed("""
        three:triangle, five:pentagon, six:hexagon, eight:octagon
    """),
    "The number of {} is": listed("""
        days in a week:seven, months in a year:twelve, legs on a spider:eight, wheels on a bicycle:two,
        legs on an insect:six, fingers on one hand:five, seasons in a year:four, sides of a triangle:three
    """),
    "To {}, you use a": listed("""
        hit a nail:hammer, cut wood:saw, tell the time:clock, open a locked door:key, dig a hole:shovel,
        sweep the floor:broom, take photographs:camera, eat soup:spoon, cut bread:knife, write on paper:pen,
        measure temperature:thermometer, look at the stars:telescope, see very small things:microscope,
        find the direction north:compass
    """),
    "The sport of {} is played with a": listed("""
        tennis:racket, baseball:bat, golf:club, hockey:stick, basketball:basketball
    """),
    "The science that studies {} is called": listed("""
        living things:biology, the stars and planets:astronomy, rocks:geology, the mind:psychology,
        numbers and shapes:mathematics, matter and energy:physics, the weather:meteorology,
        substances and their reactions:chemistry, the past:history
    """),
    "A place where {} is called a": listed("""
        books are lent:library, sick people are treated:hospital, films are shown:cinema, children learn:school,
        paintings are shown:museum, money is kept:bank, bread is sold:bakery, airplanes land:airport,
        trains stop:station, wild animals are kept:zoo, criminals are kept:prison, guests pay for a room:hotel
    """),
}
"""sentence with a gap: subject:answer pairs"""

SINGLE: tuple[tuple[str, str, str], ...] = (
    ("The largest ocean on Earth is the", "Pacific", "Atlantic, Indian, Arctic"),
    ("The largest planet in the solar system is", "Jupiter", "Mars, Venus, Earth"),
    ("The planet closest to the Sun is", "Mercury", "Saturn, Neptune, Jupiter"),
    ("The planet known as the Red Planet is", "Mars", "Venus, Saturn, Neptune"),
    ("The planet famous for its rings is", "Saturn", "Mars, Mercury, Venus"),
    ("The natural satellite of the Earth is the", "Moon", "Sun, star, comet"),
    ("The star at the center of our solar system is the", "Sun", "Moon, Earth, Mars"),
    ("The Earth goes around the Sun once every", "year", "day, week, month"),
    ("The Earth turns around its own axis once every", "day", "year, month, minute"),
    ("When water freezes, it turns into", "ice", "steam, oil, sand"),
    ("When water boils, it turns into", "steam", "ice, stone, snow"),
    ("Plants make food from sunlight in a process called", "photosynthesis", "digestion, evaporation, respiration"),
    ("The gas that people need to breathe is", "oxygen", "helium, methane, neon"),
    ("The force that pulls objects toward the ground is", "gravity", "electricity, friction, magnetism"),
    ("The organ that pumps blood through the body is the", "heart", "liver, stomach, brain"),
    ("The hardest natural substance is", "diamond", "wood, chalk, clay"),
    ("The tallest mountain in the world is Mount", "Everest", "Fuji, Rushmore, Olympus"),
    ("The longest river in Africa is the", "Nile", "Amazon, Danube, Thames"),
    ("The largest rain forest in the world is the", "Amazon", "Congo, Sahara, Alps"),
    ("The largest animal on Earth is the blue", "whale", "shark, bird, elephant"),
    ("The fastest animal on land is the", "cheetah", "turtle, elephant, cow"),
    ("The first president of the United States was George", "Washington", "Lincoln, Jefferson, Roosevelt"),
    ("The president who ended slavery in the United States was Abraham", "Lincoln", "Washington, Kennedy, Reagan"),
    ("World War II ended in the year", "1945", "1845, 1918, 1969"),
    ("World War I began in the year", "1914", "1814, 1945, 1969"),
    ("Humans first landed on the Moon in the year", "1969", "1869, 1914, 2001"),
    ("The United States declared independence in", "1776", "1492, 1914, 1945"),
    ("The leader of Nazi Germany was Adolf", "Hitler", "Stalin, Churchill, Napoleon"),
    ("The ancient pyramids of Giza are in", "Egypt", "Norway, Japan, Brazil"),
    ("The ancient Olympic Games were first held in", "Greece", "Japan, Canada, Brazil"),
    ("The ship that sank in 1912 after it hit an iceberg was the", "Titanic", "Mayflower, Victory, Bounty"),
    ("The wall that divided a German city until 1989 stood in", "Berlin", "Munich, Hamburg, Cologne"),
    ("The first name of the composer Mozart was", "Wolfgang", "Ludwig, Johann, Franz"),
    ("The season that comes after winter is", "spring", "summer, autumn, fall"),
    ("The season with the hottest days is", "summer", "winter, spring, autumn"),
    ("The opposite direction of north is", "south", "east, west, up"),
    ("The sun rises in the", "east", "west, north, south"),
    ("The sun sets in the", "west", "east, north, south"),
    ("A dozen eggs means that there are", "twelve", "five, twenty, fifty"),
    ("A century lasts one hundred", "years", "days, weeks, hours"),
    ("A decade lasts ten", "years", "days, weeks, hours"),
    ("One hour has sixty", "minutes", "seconds, days, weeks"),
    ("One minute has sixty", "seconds", "hours, days, weeks"),
    ("One kilometer equals one thousand", "meters", "miles, feet, inches"),
    ("The freezing point of water in degrees Celsius is", "0", "50, 70, 99"),
    ("Red and yellow paint mixed together give", "orange", "blue, black, white"),
    ("Blue and yellow paint mixed together give", "green", "red, white, black"),
    ("Black and white paint mixed together give", "gray", "red, yellow, green"),
    ("Bees collect nectar from", "flowers", "stones, rivers, clouds"),
    ("Caterpillars turn into", "butterflies", "spiders, birds, frogs"),
    ("Pandas mainly eat", "bamboo", "fish, bread, grass"),
    ("Cows mainly eat", "grass", "fish, meat, honey"),
    ("Rabbits like to eat", "carrots", "stones, fish, meat"),
    ("Fish breathe with their", "gills", "lungs, ears, fins"),
    ("The organs that fill with air when we breathe in are the", "lungs", "kidneys, ears, bones"),
    ("Birds are covered with", "feathers", "scales, wool, shells"),
    ("Penguins live in the cold region of", "Antarctica", "Africa, Texas, India"),
    ("The Amazon River flows through", "Brazil", "Canada, Egypt, Germany"),
    ("The Statue of Liberty was a gift from", "France", "China, Mexico, Japan"),
    ("Pizza and pasta are dishes from", "Italy", "China, Sweden, Egypt"),
    ("Sushi is a dish from", "Japan", "Italy, Mexico, Germany"),
    ("Tacos are a dish from", "Mexico", "Japan, Norway, Egypt"),
    ("The holy book of Islam is the", "Quran", "Bible, Torah, Vedas"),
    ("The holy book of Christianity is the", "Bible", "Quran, Vedas, Odyssey"),
    ("Christmas is celebrated in the month of", "December", "June, March, August"),
    ("Halloween is celebrated in the month of", "October", "May, July, January"),
    ("The language of the ancient Romans was", "Latin", "Greek, English, Russian"),
    ("The Great Fire of 1666 destroyed much of", "London", "Paris, Moscow, Madrid"),
    ("The instrument with black and white keys is the", "piano", "drum, flute, violin"),
    ("A triangle has three", "sides", "circles, wheels, legs"),
    ("Sound travels in the form of", "waves", "stones, lines, boxes"),
    ("The center of an atom is called the", "nucleus", "shell, electron, planet"),
    ("The smallest unit of life is the", "cell", "city, planet, bone"),
    ("The powerhouse of the cell is the", "mitochondria", "nucleus, membrane, wall"),
    ("DNA is found in the nucleus of a", "cell", "rock, star, cloud"),
    ("A vehicle that travels under water is a", "submarine", "helicopter, bicycle, truck"),
    ("Doctors use X-rays to look at", "bones", "colors, clouds, stars"),
    ("Vitamin C is found in fruits such as", "oranges", "stones, eggs, noodles"),
    ("Milk contains a lot of", "calcium", "gold, sand, iron"),
    ("The Internet connects", "computers", "rivers, planets, trees"),
    ("Rain falls from the", "clouds", "trees, ground, moon"),
    ("Trees absorb water through their", "roots", "leaves, flowers, fruits"),
    ("Lava comes out of a", "volcano", "river, cloud, lake"),
    ("A magnet attracts", "iron", "wood, paper, glass"),
    ("The skeleton of the body is made of", "bones", "skin, hair, blood"),
)
"""(sentence, its end, three wrong ends)"""
