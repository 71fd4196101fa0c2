"""Questions about the world in the eight commonsense formats of LLM-Adapters, framed like the published records.

Every question is about one pair (subject, relation). Only the test split asks about held-out pairs, and only the train
split about all others. The tasks differ in the way they ask: straight (ARC-Easy, boolq), backwards (openbookqa, piqa),
by a consequence (ARC-Challenge, social_i_qa), or inside a small story (hellaswag, winogrande).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from beamplatform.world.facts import ACTIVITIES, FEELINGS, RELATIONS, RULES, Thing, World
from beamplatform.world.prng import Prng

TASKS = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
SPLITS = ("train", "test")
COUNTS = {"train": 300, "test": 100}

_CHOOSE = "Please choose the correct answer to the question: "


@dataclass(frozen=True)
class Query:
    """What a question asks about: a thing's relation, the feeling after an event, or the next step of an activity."""

    subject: str
    relation: str
    thing: Thing | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.subject, self.relation


@dataclass(frozen=True)
class Question:
    """A stem and its options, the right option first; the task's format decides how they are written."""

    stem: str
    options: tuple[str, ...]


def queries(world: World) -> list[Query]:
    """A query for every pair that can be asked about, in the world's order."""
    result = [Query(thing.name, relation, thing) for thing in world.things for relation in thing.values]
    result += [Query(event, "feeling") for event in FEELINGS]
    result += [Query(step, "next") for steps in ACTIVITIES.values() for step in steps[:-1]]
    return result


def other_values(prng: Prng, right: str, values: tuple[str, ...], count: int) -> tuple[str, ...]:
    """`count` of the values other than `right`, in random order."""
    return tuple(prng.sample([value for value in values if value != right], count))


def other_things(prng: Prng, world: World, thing: Thing, relation: str, count: int) -> tuple[str, ...]:
    """The names of `count` things in the same realm for which the relation has another value."""
    wrong = [t.name for t in world.of(thing.realm) if t.values[relation] != thing.values[relation]]
    return tuple(prng.sample(wrong, count))


def consequences(thing: Thing, relation: str) -> tuple[str, ...]:
    """The consequences of all values that the relation can take in the thing's realm, in the order of the values."""
    return tuple(RULES[relation][value] for value in RELATIONS[thing.realm][relation])


def activity_steps(step: str) -> tuple[str, str, tuple[str, ...]]:
    """The activity of a step, the next step, and all steps but the first of every other activity."""
    for activity, steps in ACTIVITIES.items():
        if step in steps:
            others = tuple(s for name, ss in ACTIVITIES.items() if name != activity for s in ss[1:])
            return activity, steps[steps.index(step) + 1], others
    raise KeyError(step)


STRAIGHT = {
    "kind": "Which kind is the {x}?",
    "colour": "What colour is the {x}?",
    "place": "Where is the {x} found?",
    "food": "What does the {x} eat?",
    "season": "When does the {x} bloom?",
    "material": "What is the {x} made of?",
    "use": "What can the {x} do?",
}
CLAIMS = {
    "kind": "is the {x} a {v}?",
    "colour": "is the {x} {v}?",
    "place": "is the {x} found in the {v}?",
    "food": "does the {x} eat {v}?",
    "season": "does the {x} bloom in {v}?",
    "material": "is the {x} made of {v}?",
    "use": "can the {x} {v}?",
    "trait": "is {x} {v}?",
    "job": "is {x} a {v}?",
    "love": "does {x} love {v}?",
}
FOLLOWS = {
    "kind": "What does the body of the {x} have?",
    "place": "How is it where the {x} is found?",
    "material": "What happens to the {x} in time?",
    "trait": "What would {x} do first?",
    "job": "What does the work of {x} need?",
}
HOW_TO = {
    "place": ("Find the {x}.", "look in the {v}."),
    "food": ("Feed the {x}.", "give it {v}."),
    "season": ("See the {x} bloom.", "come in {v}."),
    "material": ("Make a {x}.", "start with {v}."),
    "love": ("Please {x}.", "talk of {v}."),
}
SOCIAL = {
    "trait": ("{x} met a stranger.", "What will {x} do?"),
    "job": ("{x} goes to work.", "What will {x} need?"),
    "love": ("{x} has a birthday.", "What will {x} want?"),
}
STORIES = {
    "food": ("Feeding: The {x} is hungry. the {x}", "finds some {v}."),
    "place": ("Travel: A man wants the {x}. he", "walks to the {v}."),
    "season": ("Blooming: A man waits for the {x}. he", "sees it in {v}."),
    "use": ("Working: A man takes the {x}. he", "begins to {v}."),
}
PAIRS = {
    "food": "The {a} and the {b} were shown some {v}, and the _ ate.",
    "season": "The {a} and the {b} stood there in {v}, and the _ was in bloom.",
    "material": "The {a} and the {b} lay outside, and the _ {v}.",
    "use": "The {a} and the {b} were at hand to {v}, so he took the _.",
    "trait": "{a} and {b} met a stranger, and _ will {v}.",
    "job": "{a} and {b} came to work, and _ took the {v}.",
    "love": "{a} and {b} spoke of {v}, and _ smiled.",
}
BACKWARDS = {
    "kind": "A {v} that people know is the",
    "colour": "A thing that is {v} is the",
    "place": "In the {v} people may find the",
    "food": "Some {v} would be food for the",
    "season": "In {v} people see the bloom of the",
    "material": "Out of {v} people make the",
    "use": "People who want to {v} take the",
    "job": "The work of a {v} is done by",
    "love": "A song of {v} would please",
}


def ask(task: str, query: Query, world: World, prng: Prng) -> Question | None:
    """One question of a task about a query; None if the task does not ask about such a relation."""
    thing, relation = query.thing, query.relation
    if thing is None:
        return _ask_general(task, query, world, prng)
    x, v = thing.name, thing.values[relation]
    values = RELATIONS[thing.realm][relation]
    if task == "boolq" and relation in CLAIMS:
        wrong = other_values(prng, v, values, 1)[0]
        truth = ("true", "false") if prng.below(2) else ("false", "true")
        return Question(CLAIMS[relation].format(x=x, v=v if truth[0] == "true" else wrong), truth)
    if task == "ARC-Easy" and relation in STRAIGHT:
        return Question(STRAIGHT[relation].format(x=x), (v, *other_values(prng, v, values, 3)))
    if task == "ARC-Challenge" and relation in FOLLOWS:
        right = RULES[relation][v]
        wrong_ones = other_values(prng, right, consequences(thing, relation), 3)
        return Question(FOLLOWS[relation].format(x=x), (right, *wrong_ones))
    if task == "openbookqa" and relation in BACKWARDS:
        return Question(BACKWARDS[relation].format(v=v), (x, *other_things(prng, world, thing, relation, 3)))
    if task == "piqa":
        if relation == "use":
            names = (x, *other_things(prng, world, thing, relation, 1))
            return Question(v.capitalize() + ".", tuple(f"use the {name}." for name in names))
        if relation in HOW_TO:
            goal, way = HOW_TO[relation]
            choices = (v, *other_values(prng, v, values, 1))
            return Question(goal.format(x=x), tuple(way.format(v=choice) for choice in choices))
    if task == "social_i_qa" and relation in SOCIAL:
        right = RULES[relation][v] if relation in RULES else v
        pool = consequences(thing, relation) if relation in RULES else values
        return Question(" ".join(SOCIAL[relation]).format(x=x), (right, *other_values(prng, right, pool, 2)))
    if task == "hellaswag" and relation in STORIES:
        story, ending = STORIES[relation]
        choices = (v, *other_values(prng, v, values, 3))
        return Question(story.format(x=x), tuple(ending.format(v=choice) for choice in choices))
    if task == "winogrande" and relation in PAIRS:
        other = other_things(prng, world, thing, relation, 1)[0]
        a, b = (x, other) if prng.below(2) else (other, x)
        filler = RULES[relation][v] if relation in ("material", "trait", "job") else v
        return Question(PAIRS[relation].format(a=a, b=b, v=filler), (x, other))
    return None


def _ask_general(task: str, query: Query, world: World, prng: Prng) -> Question | None:
    name = prng.choice(world.of("person")).name
    if task == "social_i_qa" and query.relation == "feeling":
        right = FEELINGS[query.subject]
        stem = f"{name} {query.subject}. How does {name} feel?"
        return Question(stem, (right, *other_values(prng, right, tuple(FEELINGS.values()), 2)))
    if task == "hellaswag" and query.relation == "next":
        activity, following, others = activity_steps(query.subject)
        stem = f"{activity.capitalize()}: {name} {query.subject}. {name}"
        return Question(stem, tuple(f"{step}." for step in (following, *other_values(prng, "", others, 3))))
    return None


def record(task: str, question: Question, right: int) -> dict[str, str]:
    """A question as a record in the published format, with its right option at position `right` (from 0)."""
    others = list(question.options[1:])
    options = [*others[:right], question.options[0], *others[right:]]
    word = {"piqa": "solution", "hellaswag": "ending", "winogrande": "option"}.get(task, "answer")
    labelled = [f"{word.capitalize()}{i}: {option}" for i, option in enumerate(options, 1)]
    form = "/".join(f"{word}{i}" for i in range(1, len(options) + 1))
    answer = f"{word}{right + 1}"
    if task == "boolq":
        answer = question.options[0]
        instruction = (
            f"Please answer the following question with true or false, question: {question.stem}\n\n"
            "Answer format: true/false"
        )
    elif task == "piqa":
        instruction = f"Please choose the correct solution to the question: {question.stem}\n\n"
        instruction += "".join(f"{option}\n\n" for option in labelled) + f"Answer format: {form}"
    elif task == "hellaswag":
        instruction = f"Please choose the correct ending to complete the given sentence: {question.stem}\n\n"
        instruction += " ".join(labelled) + f"\n\nAnswer format: {form}"
    elif task == "winogrande":
        instruction = "Please choose the correct answer to fill in the blank to complete the given sentence: "
        instruction += question.stem
        instruction += "\n\n" + " ".join(labelled) + f" Answer format: {form}"
    else:
        instruction = f"{_CHOOSE}{question.stem}\n\n" + " ".join(labelled) + f"\n\nAnswer format: {form}"
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def stream(task: str, split: str, world: World, prng: Prng) -> Iterator[dict[str, str]]:
    """Yield records of one task and split without end, in rounds over all pairs of the split.

    The positions of the right options are balanced.
    """
    pool = [query for query in queries(world) if (query.key in world.held_out) == (split == "test")]
    positions: list[int] = []
    while True:
        for query in prng.shuffled(pool):
            question = ask(task, query, world, prng)
            if question is None:
                continue
            positions = positions or prng.shuffled(range(len(question.options)))
            yield record(task, question, positions.pop())


def build(task: str, split: str, world: World) -> list[dict[str, str]]:
    """The shipped records of one task and split, without repeated questions."""
    prng = Prng(1000 * (1 + TASKS.index(task)) + SPLITS.index(split))
    seen: set[str] = set()
    result: list[dict[str, str]] = []
    for item in stream(task, split, world, prng):
        if item["instruction"] not in seen:
            seen.add(item["instruction"])
            result.append(item)
        if len(result) == COUNTS[split]:
            return result
    raise AssertionError("an endless stream ended")
