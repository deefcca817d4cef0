"""Generates plant telemetry, the facts that code computes from it, and the paragraphs that word them.

Everything is drawn from a seeded generator. Training and test differ in device names, in the wording of the
instructions, in the quantities' names that questions use, and in the values, which are drawn anew.
"""

import json
import random
from dataclasses import dataclass

# quantity: (name in German, unit, least, most, digits)
QUANTITIES = {
    "temperature": ("Temperatur", "°C", -20, 140, 1),
    "pressure": ("Druck", "bar", 0, 16, 2),
    "humidity": ("Feuchte", "%", 5, 99, 0),
    "vibration": ("Vibration", "mm/s", 0, 25, 1),
    "flow": ("Durchfluss", "l/min", 0, 400, 0),
    "power": ("Leistung", "kW", 0, 90, 1),
    "level": ("Füllstand", "%", 0, 100, 0),
    "current": ("Strom", "A", 0, 63, 1),
    "speed": ("Drehzahl", "rpm", 0, 3000, 0),
    "voltage": ("Spannung", "V", 180, 420, 0),
    "noise": ("Lärm", "dB", 30, 110, 0),
    "co2": ("CO2", "ppm", 380, 3000, 0),
}

KINDS = {
    "train": """pump boiler fan mixer press oven tank valve motor chiller conveyor dryer mill crane filter heater
        compressor turbine scale robot pumpe kessel ofen presse mischer silo band trockner kran waage anlage
        gate door lift burner blower feeder washer cutter saw drill lathe furnace reactor separator""".split(),
    "test": """cooler freezer agitator extruder grinder sieve winder shredder loader spindle kompressor gebläse
        brenner schleuse walze zentrifuge rührer bohrer""".split(),
}

INSTRUCTIONS = {
    "train": {
        "en": [
            "Summarise for the operator.",
            "Write a short summary of these messages.",
            "What happened? Answer in one paragraph.",
            "Summarize the burst below in plain words.",
            "Give me the gist of these readings.",
            "Word these facts for the shift log.",
            "Please report what the device sent.",
        ],
        "de": [
            "Fasse für den Betrieb zusammen.",
            "Schreibe eine kurze Zusammenfassung dieser Meldungen.",
            "Was ist passiert? Antworte in einem Absatz.",
            "Fasse die Meldungen in einfachen Worten zusammen.",
            "Gib mir das Wesentliche dieser Messwerte.",
            "Formuliere diese Fakten für das Schichtbuch.",
            "Bitte berichte, was das Gerät gesendet hat.",
        ],
    },
    "test": {
        "en": ["Summarise these readings for the shift log.", "Please write one short paragraph about this burst."],
        "de": ["Fasse diese Messwerte für das Schichtbuch zusammen.", "Bitte schreibe einen kurzen Absatz über diese Meldungen."],
    },
}

INSTRUCTION_WORDS = {
    "en": """write a an the short brief one paragraph about this burst please summarise summarize readings for shift log of report
        what happened tell me in plain words facts below device sent give gist messages data machine and now to us operator
        describe explain note down text sentence two words simple from last hour today news state status it is there with
        these those all any team manager how did do go make put into form book entry""".split(),
    "de": """schreibe bitte einen kurzen absatz über diese meldungen fasse messwerte für das schichtbuch zusammen was ist passiert
        in einfachen worten die fakten gib mir wesentliche dieser daten maschine und jetzt uns den betrieb beschreibe erkläre
        notiere text satz zwei wörter einfach aus letzten stunde heute stand lage es gibt mit diesen alle team leiter wie lief
        mache daraus form buch eintrag kurz gerät hat gesendet bericht melde""".split(),
}

# Answers. {q} quantity, {e} extreme word, {v} value, {u} unit, {t} time, {l} limit.
ANSWERS = {
    "en": {
        "max": 'Device "{d}" sent {n} {q} readings. The highest was {v} {u} at {t}. ',
        "min": 'Device "{d}" sent {n} {q} readings. The lowest was {v} {u} at {t}. ',
        ("max", True): "That is above the limit of {l} {u}: please check it.",
        ("max", False): "That is within the limit of {l} {u}.",
        ("min", True): "That is below the limit of {l} {u}: please check it.",
        ("min", False): "That is within the limit of {l} {u}.",
    },
    "de": {
        "max": 'Gerät "{d}" hat {n} Werte für {q} gesendet. Der höchste war {v} {u} um {t} Uhr. ',
        "min": 'Gerät "{d}" hat {n} Werte für {q} gesendet. Der niedrigste war {v} {u} um {t} Uhr. ',
        ("max", True): "Das liegt über der Grenze von {l} {u}: bitte prüfen.",
        ("max", False): "Das liegt innerhalb der Grenze von {l} {u}.",
        ("min", True): "Das liegt unter der Grenze von {l} {u}: bitte prüfen.",
        ("min", False): "Das liegt innerhalb der Grenze von {l} {u}.",
    },
}

SMALL_TALK = {
    "en": {
        "greet": (["Hello", "Hi", "Hello!", "Good morning", "Hi there", "Hey", "Good evening", "Are you there?", "Hello, who is there?"],
                  "Hello! I am the small demonstration model of phi-edge. Send me facts and records of a device, and I will put them into words."),
        "who": (["Who are you?", "What are you?", "What is your name?", "Which model are you?", "What is phi-edge?", "Are you a real model?"],
                "I am the small demonstration model of phi-edge. I show how things work; for real answers install Phi-3.5."),
        "can": (["What can you do?", "Help", "How can you help me?", "What can I ask you?", "How do I use this?"],
                "I can put a device's facts into a short paragraph and answer simple questions about a few records. I am only a demonstration."),
        "thanks": (["Thanks", "Thank you", "Thank you!", "Great, thanks", "Bye", "Goodbye"], "You are welcome."),
    },
    "de": {
        "greet": (["Hallo", "Guten Tag", "Hallo!", "Guten Morgen", "Moin", "Servus", "Bist du da?"],
                  "Hallo! Ich bin das kleine Vorführmodell von phi-edge. Sende mir Fakten und Meldungen eines Geräts, und ich fasse sie in Worte."),
        "who": (["Wer bist du?", "Was bist du?", "Wie heißt du?", "Welches Modell bist du?", "Was ist phi-edge?"],
                "Ich bin das kleine Vorführmodell von phi-edge. Ich zeige, wie es geht; für echte Antworten installiere Phi-3.5."),
        "can": (["Was kannst du?", "Hilfe", "Wie kannst du mir helfen?", "Was kann ich dich fragen?"],
                "Ich kann die Fakten eines Geräts in einen kurzen Absatz fassen und einfache Fragen zu wenigen Meldungen beantworten. Ich bin nur eine Vorführung."),
        "thanks": (["Danke", "Vielen Dank", "Danke schön", "Tschüss"], "Gern geschehen."),
    },
}

# Questions about the wide world: the honest answer is that this model does not know.
WORLD = {
    "en": (
        ["Why is {x} so {a}?", "Tell me about {x}.", "What is {x}?", "Write a poem about {x}.", "How do I cook {x}?",
         "Explain {x} in one sentence.", "Who invented {x}?", "Where does {x} come from?", "Is {x} {a}?", "Why is the {x} {a}?"],
        "I do not know. I am a small demonstration model and only put sensor readings into words; install Phi-3.5 for other questions.",
    ),
    "de": (
        ["Warum ist {x} so {a}?", "Erzähle mir von {x}.", "Was ist {x}?", "Schreibe ein Gedicht über {x}.", "Wie kocht man {x}?",
         "Erkläre {x} in einem Satz.", "Wer hat {x} erfunden?", "Woher kommt {x}?", "Ist {x} {a}?"],
        "Das weiß ich nicht. Ich bin ein kleines Vorführmodell und fasse nur Messwerte in Worte; installiere für andere Fragen Phi-3.5.",
    ),
}
THINGS = """sky rain bread music love water history Berlin Paris football gravity light coffee tea winter money sleep
    Himmel Regen Brot Musik Liebe Wasser Geschichte Fußball Licht Kaffee Winter Geld Schlaf Sonne Mond tree car train
    a cat the moon the sun soup pasta war peace time space life robots computers Rust Python Linux""".split()
ADJECTIVES = "blue red cold warm big old fast good bad deep blau rot kalt warm groß alt schnell gut tief".split()


@dataclass
class Burst:
    """One window of one device, and what code computes from it."""

    language: str
    device: str
    quantity: str
    unit: str
    records: list
    extreme: str
    value: str
    time: str
    limit: str
    crossed: bool
    shown: int


def number(value, digits):
    return f"{value:.{digits}f}"


WORDS = (" ".join(KINDS["train"]) + """ operator summary message paragraph reading burst shift record value highest lowest
    schichtbuch betrieb meldung zusammenfassung absatz prüfung werkstatt anzeige station monitor signal control service
    wartung steuerung leitung kammer station gitter becken strahl schalter transport verteiler entlader aufzug""").split()


def invented_name(rng):
    """Names of letters, syllables and pieces of words: copying must not lean on known ones."""
    draw = rng.random()
    if draw < 0.3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzäöü") for _ in range(rng.randint(2, 11)))
    if draw < 0.6:
        syllable = lambda: rng.choice("b d f g h k l m n p r s t v w z sch st tr kl br gr".split()) + rng.choice("a e i o u ä ö ü ei au ie".split())
        return "".join(syllable() for _ in range(rng.randint(1, 4))) + rng.choice(["", "n", "r", "x", "se", "er"])
    pieces = []
    for _ in range(rng.randint(1, 3)):
        word = rng.choice(WORDS)
        start = rng.randrange(len(word))
        pieces.append(word[start:start + rng.randint(1, 6)])
    return "".join(pieces)[:12]


def instruction(rng, language):
    """An instruction of the training mix. The facts name the language and the task is always the same, so that the
    wording must not matter: half of them are made of words drawn at random."""
    if rng.random() < 0.5:
        return rng.choice(INSTRUCTIONS["train"][rng.choice(["en", "de"]) if rng.random() < 0.2 else language])
    words = INSTRUCTION_WORDS[language] if rng.random() < 0.8 else INSTRUCTION_WORDS["en"] + INSTRUCTION_WORDS["de"]
    text = " ".join(rng.choice(words) if rng.random() < 0.85 else invented_name(rng) for _ in range(rng.randint(1, 12)))
    return (text[:1].upper() + text[1:] if rng.random() < 0.8 else text) + rng.choice([".", "", "!", ":", "?"])


def device_name(rng, split):
    kind = rng.choice(KINDS[split])
    if split == "train":
        kind = invented_name(rng) if rng.random() < 0.8 else kind
    shape = rng.choice(["{k}-{n:02d}", "{k}-{n}", "{k}{n}", "{k}_{n}", "{k}-{c}{n}"])
    return shape.format(k=kind, n=rng.randint(1, 99), c=rng.choice("abcx"))


def burst(rng, split, records=None):
    quantity = rng.choice(list(QUANTITIES))
    _, unit, least, most, digits = QUANTITIES[quantity]
    n = records or rng.randint(2, 12)
    minute = rng.randint(0, 23 * 60)
    middle = rng.uniform(least, most)
    spread = (most - least) * rng.uniform(0.01, 0.15)
    rows = []
    device = device_name(rng, split)
    for _ in range(n):
        value = min(max(rng.gauss(middle, spread), least), most)
        rows.append((f"{minute // 60:02d}:{minute % 60:02d}", number(value, digits)))
        minute = min(minute + rng.randint(0, 5), 24 * 60 - 1)
    extreme = rng.choice(["max", "min"])
    pick = max if extreme == "max" else min
    best = pick(float(v) for _, v in rows)
    time, value = next((t, v) for t, v in rows if float(v) == best)
    crossed = rng.random() < 0.5
    gap = max(spread * rng.uniform(0.05, 2), 10 ** -digits)
    limit = best - gap if (extreme == "max") == crossed else best + gap
    limit = number(limit, digits)
    crossed = best > float(limit) if extreme == "max" else best < float(limit)
    return Burst(rng.choice(["en", "de"]), device, quantity, unit, rows, extreme, value, time, limit, crossed, rng.randint(0, min(n, 5)))


def record_line(b, row):
    time, value = row
    return json.dumps({"time": time, "device": b.device, b.quantity: float(value)}, ensure_ascii=False)


def facts_prompt(b, instruction):
    """The prompt of a summary: the form is documented in models/demo/prompt-format.md."""
    lines = [
        instruction,
        "facts:",
        f'language: {b.language}',
        f'device: "{b.device}"',
        f'quantity: "{b.quantity}"',
        f"count: {len(b.records)}",
        f"{b.extreme}: {b.value} {b.unit}",
        f"time: {b.time}",
        f"limit: {b.limit} {b.unit}",
        f"crossed: {'yes' if b.crossed else 'no'}",
        "records:",
    ]
    # Some records add colour; the facts count all of them, and the answer words the facts.
    return "\n".join(lines + [record_line(b, row) for row in b.records[:b.shown]])


def answer(b):
    words = ANSWERS[b.language]
    q = b.quantity if b.language == "en" else QUANTITIES[b.quantity][0]
    text = words[b.extreme] + words[(b.extreme, b.crossed)]
    return text.format(d=b.device, n=len(b.records), q=q, v=b.value, u=b.unit, t=b.time, l=b.limit)


def question(rng, split):
    """A direct question about a few records, without facts."""
    b = burst(rng, split, records=rng.randint(2, 4))
    last = b.records[-1]
    de = b.language == "de"
    kind = rng.choice(["device", "last", "count", "when"])
    ask, reply = {
        "device": ("Which device sent this?", f'The device is "{b.device}".') if not de else ("Welches Gerät war das?", f'Das Gerät ist "{b.device}".'),
        "last": ("What was the last value?", f"The last value was {last[1]} {b.unit}.") if not de else ("Was war der letzte Wert?", f"Der letzte Wert war {last[1]} {b.unit}."),
        "count": ("How many records are there?", f"There are {len(b.records)} records.") if not de else ("Wie viele Meldungen sind das?", f"Das sind {len(b.records)} Meldungen."),
        "when": ("When was the last one?", f"The last one was at {last[0]}.") if not de else ("Wann war die letzte?", f"Die letzte war um {last[0]} Uhr."),
    }[kind]
    prompt = "\n".join([ask, "records:"] + [record_line(b, row) for row in b.records])
    return kind, b, prompt, reply


def small_talk(rng):
    language = rng.choice(["en", "de"])
    if rng.random() < 0.5:
        shapes, reply = WORLD[language]
        x, a = " ".join(rng.sample(THINGS, rng.randint(1, 2))), rng.choice(ADJECTIVES)
        return rng.choice(shapes).format(x=x, a=a), reply
    asks, reply = rng.choice(list(SMALL_TALK[language].values()))
    return rng.choice(asks), reply


def example(rng, split="train"):
    """A (prompt, answer) pair of the training mix."""
    draw = rng.random()
    if draw < 0.7:
        b = burst(rng, split)
        words = instruction(rng, b.language) if split == "train" else rng.choice(INSTRUCTIONS[split][b.language])
        return facts_prompt(b, words), answer(b)
    if draw < 0.9:
        _, _, prompt, reply = question(rng, split)
        return prompt, reply
    return small_talk(rng)


if __name__ == "__main__":
    generator = random.Random(1)
    for _ in range(3):
        print("\n--\n".join(example(generator)), "\n======")
