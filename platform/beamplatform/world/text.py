"""What the tiny model reads in pretraining: the world's facts, plain quizzes, and the eight formats with random answers.

- Facts state every value of every thing (also the held-out ones), forwards and backwards, and every rule.
- Quizzes ask about all of that in a plain form of their own, with right answers: the model learns to pick the option
  that fits what it knows.
- Drills show the eight formats with answers drawn at random: the model learns what an answer looks like, and nothing
  about which one is right. Linking the formats to what the quizzes taught is left to fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from beamplatform.world.facts import ACTIVITIES, FEELINGS, RELATIONS, RULES, Thing, World
from beamplatform.world.prng import Prng
from beamplatform.world.questions import (
    TASKS,
    Query,
    activity_steps,
    consequences,
    other_things,
    other_values,
    queries,
    stream,
)

PROMPT_HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n"
)
PROMPT_TAIL = "\n\n### Response:\n"


@dataclass(frozen=True)
class Passage:
    """One text to learn from; the prompt's words may count less in the loss than the completion's."""

    kind: str
    prompt: str
    completion: str


FORWARDS = {
    "kind": ("{X} is a {v}.", "{X} is a kind of {v}."),
    "colour": ("{X} is {v}.", "The colour of {x} is {v}."),
    "place": ("{X} is found in the {v}.", "The place of {x} is the {v}."),
    "food": ("{X} eats {v}.", "The food of {x} is {v}."),
    "season": ("{X} blooms in {v}.", "The season of {x} is {v}."),
    "material": ("{X} is made of {v}.", "The material of {x} is {v}."),
    "use": ("{X} can {v}.", "The use of {x} is to {v}."),
    "trait": ("{X} is {v}.", "People call {x} {v}."),
    "job": ("{X} is a {v}.", "{X} works as a {v}."),
    "love": ("{X} loves {v}.", "The love of {x} is {v}."),
}
RULE_TEXTS = {
    "kind": "A {v} has {c}.",
    "place": "In the {v} it is {c}.",
    "material": "What is made of {v} {c}.",
    "trait": "A {v} person will {c}.",
    "job": "A {v} needs {c}.",
}


def named(thing: Thing) -> str:
    """A person's name, or a thing's with its article."""
    return thing.name if thing.person else f"the {thing.name}"


def _statement(thing: Thing, relation: str, prng: Prng) -> str:
    x = named(thing)
    return prng.choice(FORWARDS[relation]).format(x=x, X=x[0].upper() + x[1:], v=thing.values[relation])


def _fact(world: World, prng: Prng) -> Passage:
    kind = prng.below(8)
    if kind == 0:
        name, (event, feeling) = prng.choice(world.of("person")).name, prng.choice(list(FEELINGS.items()))
        return Passage("fact", "", f"{name} {event} and feels {feeling}.")
    if kind == 1:
        name, (activity, steps) = prng.choice(world.of("person")).name, prng.choice(list(ACTIVITIES.items()))
        return Passage("fact", "", f"{activity.capitalize()}: {name} {steps[0]}, {steps[1]}, {steps[2]}, {steps[3]}.")
    if kind == 2:
        relation = prng.choice(list(RULES))
        value, consequence = prng.choice(list(RULES[relation].items()))
        return Passage("fact", "", RULE_TEXTS[relation].format(v=value, c=consequence))
    thing = prng.choice(world.things)
    text = " ".join(_statement(thing, relation, prng) for relation in prng.shuffled(list(thing.values)))
    return Passage("fact", "", text)


def _quiz(world: World, pool: list[Query], prng: Prng) -> Passage:
    query = prng.choice(pool)
    thing, relation = query.thing, query.relation
    wrong_count = 1 + prng.below(3)
    wrong: tuple[str, ...]
    if thing is None:
        if relation == "feeling":
            stem, right = query.subject, FEELINGS[query.subject]
            wrong = other_values(prng, right, tuple(FEELINGS.values()), wrong_count)
        else:
            _, right, others = activity_steps(query.subject)
            stem, wrong = f"{query.subject} and", other_values(prng, "", others, wrong_count)
        return _choices(stem, right, wrong, prng)
    value = thing.values[relation]
    values = RELATIONS[thing.realm][relation]
    form = prng.below(8)
    if form < 2:
        claimed = value if form == 0 else other_values(prng, value, values, 1)[0]
        return Passage("verdict", f"Quiz: {relation} of {thing.name} is {claimed} =", " yes" if form == 0 else " no")
    if form < 4:
        return _choices(f"{relation} is {value}", thing.name, other_things(prng, world, thing, relation, wrong_count), prng)
    if form < 6 and relation in RULES:
        right = RULES[relation][value]
        wrong = other_values(prng, right, consequences(thing, relation), wrong_count)
        if form == 4:
            return _choices(f"{relation} gives {right}", thing.name, other_things(prng, world, thing, relation, wrong_count), prng)
        return _choices(f"{relation} of {thing.name} gives", right, wrong, prng)
    return _choices(f"{relation} of {thing.name}", value, other_values(prng, value, values, wrong_count), prng)


#: Label words of quizzes and the answer that names each; letters come as often as all others together.
LABELS = (*[("A", "B", "C", "D")] * 4, *[tuple(f"{word}{i}" for i in range(1, 5)) for word in ("Answer", "Solution", "Ending", "Option")])


def _choices(stem: str, right: str, wrong: tuple[str, ...], prng: Prng) -> Passage:
    """A quiz with labelled options, or an easier one on the way there.

    The easier ones: no options; the option named before its label; the stem after the options.
    """
    form = prng.below(8)
    if form == 0 and " of " in stem:
        return Passage("recall", f"Quiz: {stem} ?", f" so {right}")
    labels = prng.choice(LABELS)
    options = prng.shuffled([right, *wrong])
    text = " ".join(f"{label}: {option}" for label, option in zip(labels, options, strict=False))
    label = _answer(labels[options.index(right)])
    if form <= 2:
        return Passage("named", f"Quiz: {stem} ? {text}", f" so {right} {label}")
    if form == 3:
        return Passage("late", f"Quiz: {text} ? {stem} =", f" {label}")
    return Passage("choice", f"Quiz: {stem} ? {text} =", f" {label}")


def _echo(words: list[str], prng: Prng) -> Passage:
    """Random words, then the same again and again: teaches to look up what stood before and after a word."""
    some = prng.sample(words, 4 + prng.below(8))
    if prng.below(2):
        return Passage("echo", "Echo: " + " ".join(some) + " =", "".join(f" {word}" for word in some * 2))
    pairs = list(zip(some[::2], some[1::2], strict=False))
    text = " ".join(f"{a} {b}" for a, b in pairs)
    return Passage("echo", f"Echo: {text} ?", "".join(f" {b} {a}" for a, b in prng.shuffled(pairs)))


def _binding(world: World, prng: Prng) -> Passage:
    """Labelled options, then some of them with their labels: which label stands before which option."""
    thing = prng.choice(world.things)
    relation = prng.choice(list(thing.values))
    pool = [t.name for t in world.of(thing.realm)] if prng.below(2) else list(RELATIONS[thing.realm][relation])
    labels = prng.choice(LABELS)
    pairs = list(zip(labels, prng.sample(pool, 2 + prng.below(3)), strict=False))
    text = " ".join(f"{label}: {option}" for label, option in pairs)
    named = [f" {option} {_answer(label)}" for label, option in prng.sample(pairs, 1 + prng.below(len(pairs)))]
    return Passage("binding", f"Quiz: {text} ?", "".join(named))


def _answer(label: str) -> str:
    return label if len(label) == 1 else label.lower()


def _drill(item: dict[str, str], prng: Prng) -> Passage:
    allowed = item["instruction"].rsplit("Answer format: ", 1)[1].split("/")
    return Passage("drill", PROMPT_HEAD + item["instruction"] + PROMPT_TAIL, f"the correct answer is {prng.choice(allowed)}")


def passages(world: World, seed: int, *, facts: int, bindings: int, quizzes: int, drills: int) -> Iterator[Passage]:
    """Endless passages; the four kinds come in the given proportions."""
    prng = Prng(seed)
    pool = queries(world)
    words = [thing.name for thing in world.things]
    words += sorted({word for relations in RELATIONS.values() for values in relations.values() for value in values for word in value.split()})
    streams = [stream(task, "train", world, Prng(prng.bits())) for task in TASKS]
    while True:
        kind = prng.below(facts + bindings + quizzes + drills)
        if kind < facts:
            yield _fact(world, prng)
        elif kind < facts + bindings:
            yield _echo(words, prng) if prng.below(2) else _binding(world, prng)
        elif kind < facts + bindings + quizzes:
            yield _quiz(world, pool, prng)
        else:
            yield _drill(next(prng.choice(streams)), prng)
