"""Words that the tasks draw from. Their order is part of the seeded generator: append, never reorder."""


def _words(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _words(
    """
    amber ancient angry azure bitter black blue bold brave bright broken bronze calm careful cheerful clever cloudy
    cold copper crimson curious dark deep distant dusty eager early empty faint fierce foggy frozen gentle giant
    golden grand gray green happy hidden hollow honest humble icy idle ivory jolly keen late lazy little lonely loud
    lucky marble mighty misty modern narrow noble old pale patient plain polite proud purple quick quiet rapid red
    royal rusty sandy scarlet secret shady sharp shy silent silver simple sleepy slow small smooth solid stormy
    strong sunny sweet swift tall tender thin tiny velvet violet warm wicked wild wise wooden yellow young
    """
)

NOUNS = _words(
    """
    anchor apple arrow badger barrel basket beacon bear bell bird boat book bottle bridge brook button cabin camel
    candle canyon castle cat cedar chair chimney church clock cloud coach coin comet compass cottage crow crown
    curtain deer desert dog door dragon drum eagle engine falcon farm feather fern fiddle field fish flag flame
    flower forest fountain fox frog garden gate ghost glove goat hammer harbor hat hawk hill horse house island
    jacket jewel kettle key king kitten ladder lake lamp lantern leaf letter lion lizard maple market meadow mirror
    monkey moon mountain mouse needle ocean orchard otter owl palace panther paper parrot pebble pen pigeon pillow
    pine pirate planet pony poet prince queen rabbit raven ribbon ring river road robin rocket rope rose sailor
    school shadow sheep shell ship shoe soldier sparrow spider spoon squirrel stable star statue stone storm swan
    sword table teacher temple tiger tower train tree trumpet tunnel turtle umbrella valley village violin wagon
    walnut watch whale wheel willow window wizard wolf
    """
)

NAMES = _words(
    """
    Alice Arthur Betty Charles Clara Daniel David Edith Edward Emily Emma Frank George Grace Harold Helen Henry Jack
    James Jane John Kate Laura Lucy Mabel Maria Martha Mary Nora Oliver Oscar Paul Peter Ralph Robert Rose Ruth
    Sarah Simon Sophia Susan Thomas Victor Walter William
    """
)

OBJECTS = _words(
    """
    apples books coins stamps marbles shells pears buttons candles keys letters eggs tickets feathers stones
    """
)

PLACES = _words(
    """
    kitchen garden library cellar attic stable market church school harbor office bedroom parlor barn orchard
    theater station bakery tavern museum
    """
)

# Words to be labelled by category (few-shot classification).
CATEGORIES = {
    "animal": _words(
        "dog cat horse lion tiger bear wolf fox rabbit sheep goat cow pig deer monkey camel elephant mouse"
    ),
    "food": _words(
        "bread cheese butter apple pear cake soup meat rice potato onion egg honey sugar salt plum grape pie"
    ),
    "color": _words("red blue green yellow purple black white brown gray pink orange scarlet crimson violet"),
    "tool": _words("hammer knife saw axe needle spade shovel chisel rake scissors wrench drill pliers file"),
    "body": _words("hand foot head arm leg eye ear nose mouth finger shoulder knee neck back tooth elbow"),
    "country": _words("France Spain Italy Germany Russia England China India Egypt Greece Turkey Japan Mexico Norway"),
    "job": _words(
        "doctor lawyer teacher soldier sailor farmer baker priest nurse butcher painter tailor judge carpenter"
    ),
    "clothing": _words("hat coat shirt shoe boot glove dress skirt cloak belt stocking jacket scarf cap"),
    "tree": _words("oak pine elm willow maple cedar birch ash palm poplar beech fir"),
    "metal": _words("gold silver iron copper tin lead steel brass bronze zinc nickel mercury"),
    "music": _words("piano violin drum flute trumpet harp guitar organ fiddle horn banjo bugle"),
    "vehicle": _words("ship boat train carriage wagon cart coach canoe bicycle balloon raft sledge"),
}
