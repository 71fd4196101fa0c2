"""What the tiny model reads in pretraining: the world's facts, quizzes, and the eight formats with random answers.

- Facts state every value of every thing (including the held-out ones), forwards and backwards, and every rule.
- Quizzes ask about all these facts in a plain form of their own, with right answers: the model learns to pick the
  option that fits what it knows.
- Drills show the eight formats with random answers: the model learns what an answer looks like, but nothing about which
  answer is right. It is left to fine-tuning to link the formats with what the quizzes taught.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from beamplatform.tasks.prompts import ALPACA
from beamplatform.world.facts import ACTIVITIES, FEELINGS, RELATIONS, RULES, Thing, World
from beamplatform.world.prng import Prng
from beamplatform.world.questions import (
    TASKS,
    Query,
    Question,
    activity_steps,
    ask,
    consequences,
    other_things,
    other_values,
    queries,
    stream,
)

PROMPT_HEAD, PROMPT_TAIL = ALPACA.split("{instruction}")


@dataclass(frozen=True)
class Passage:
    """One text to learn from, as pieces in order; each is either learnt (True) or only read (False)."""

    kind: str
    parts: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        return "".join(piece for piece, _ in self.parts)


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
    name = prng.choice(world.of("person")).name
    if kind == 0:
        event, feeling = prng.choice(list(FEELINGS.items()))
        text = f"{name} {event} and feels {feeling}."
    elif kind == 1:
        activity, steps = prng.choice(list(ACTIVITIES.items()))
        text = f"{activity.capitalize()}: {name} {steps[0]}, {steps[1]}, {steps[2]}, {steps[3]}."
    elif kind == 2:
        relation = prng.choice(list(RULES))
        value, consequence = prng.choice(list(RULES[relation].items()))
        text = RULE_TEXTS[relation].format(v=value, c=consequence)
    else:
        thing = prng.choice(world.things)
        text = " ".join(_statement(thing, relation, prng) for relation in prng.shuffled(list(thing.values)))
    return Passage("fact", ((text, True),))


#: Sets of labels for quizzes; letters are as frequent as all words together.
LABELS = (
    *[("A", "B", "C", "D")] * 4,
    *[tuple(f"{word}{i}" for i in range(1, 5)) for word in ("Answer", "Solution", "Ending", "Option")],
)


def _answer(label: str) -> str:
    return label if len(label) == 1 else label.lower()


def _echo(words: list[str], prng: Prng) -> Passage:
    """Random words, then the same words again: teaches the model to look up which word stood beside another."""
    chosen = prng.sample(words, 4 + prng.below(8))
    if prng.below(2):
        again = "".join(f" {word}" for word in chosen * 2)
        return Passage("echo", (("Echo: " + " ".join(chosen) + " =", False), (again, True)))
    pairs = list(zip(chosen[::2], chosen[1::2], strict=False))
    parts = [("Echo: " + " ".join(f"{a} {b}" for a, b in pairs) + " ?", False)]
    for a, b in prng.shuffled(pairs):
        parts += [(f" {b}", False), (f" {a}", True)]
    return Passage("echo", tuple(parts))


def _binding(world: World, prng: Prng) -> Passage:
    """Labelled options, then some options with their labels: teaches which label stands before which option."""
    thing = prng.choice(world.things)
    relation = prng.choice(list(thing.values))
    pool = [t.name for t in world.of(thing.realm)] if prng.below(2) else list(RELATIONS[thing.realm][relation])
    pairs = list(zip(prng.choice(LABELS), prng.sample(pool, 2 + prng.below(3)), strict=False))
    parts = [("Quiz: " + " ".join(f"{label}: {option}" for label, option in pairs) + " ?", False)]
    for label, option in prng.sample(pairs, 1 + prng.below(len(pairs))):
        parts += [(f" {option}", False), (f" {_answer(label)}", True)]
    return Passage("binding", tuple(parts))


def _own_question(query: Query, world: World, prng: Prng) -> Question:
    """A question about any pair, held out or not, in the quizzes' own words: straight, backwards or by consequence."""
    thing, relation = query.thing, query.relation
    if thing is None:
        if relation == "feeling":
            right = FEELINGS[query.subject]
            return Question(query.subject, (right, *other_values(prng, right, tuple(FEELINGS.values()), 3)))
        _, right, others = activity_steps(query.subject)
        return Question(f"{query.subject} and", (right, *other_values(prng, "", others, 3)))
    value = thing.values[relation]
    way = prng.below(6)
    if way < 2:
        return Question(f"{relation} is {value}", (thing.name, *other_things(prng, world, thing, relation, 3)))
    if way < 4 and relation in RULES:
        right = RULES[relation][value]
        if way == 2:
            return Question(f"{relation} gives {right}", (thing.name, *other_things(prng, world, thing, relation, 3)))
        pool = consequences(thing, relation)
        return Question(f"{relation} of {thing.name} gives", (right, *other_values(prng, right, pool, 3)))
    pool = RELATIONS[thing.realm][relation]
    return Question(f"{relation} of {thing.name}", (value, *other_values(prng, value, pool, 3)))


def _task_question(query: Query, world: World, prng: Prng) -> Question | None:
    """A question in the words of a task with options; None if the pair is held out or the task cannot ask it."""
    if query.key in world.held_out:
        return None
    return ask(prng.choice(TASKS[1:]), query, world, prng)


def _claim(query: Query, world: World, prng: Prng) -> Passage | None:
    """A claim that is true or false, in boolq's words (never for a held-out pair) or in the quizzes' own words."""
    thing, relation = query.thing, query.relation
    if thing is None:
        return None
    if prng.below(2) and query.key not in world.held_out and (question := ask("boolq", query, world, prng)):
        return Passage("claim", ((f"Quiz: {question.stem} =", False), (f" {question.options[0]}", True)))
    right = thing.values[relation]
    truth = prng.below(2) == 0
    value = right if truth else other_values(prng, right, RELATIONS[thing.realm][relation], 1)[0]
    stem = f"Quiz: {relation} of {thing.name} is {value} ? ="
    return Passage("claim", ((stem, False), (" true" if truth else " false", True)))


def _quiz(world: World, pool: list[Query], prng: Prng) -> Passage:
    """A quiz with labelled options, or an easier form: a claim, an answer without options, or each option judged."""
    query = prng.choice(pool)
    if prng.below(6) == 0 and (claim := _claim(query, world, prng)):
        return claim
    question = _task_question(query, world, prng) if prng.below(2) else None
    form = prng.below(8)
    if question is None:
        question = _own_question(query, world, prng)
        if form == 0 and " of " in question.stem:
            return Passage("recall", ((f"Quiz: {question.stem} ? so", False), (f" {question.options[0]}", True)))
    right, *wrong = question.options
    options = prng.shuffled([right, *wrong[: 1 + prng.below(3)]])
    labels = prng.choice(LABELS)
    parts = [(f"Quiz: {question.stem} ?", False)]
    for label, option in zip(labels, options, strict=False):
        parts.append((f" {label}: {option}", False))
        if form < 4:
            parts.append((" yes" if option == right else " no", True))
    parts += [(" =", False), (f" {_answer(labels[options.index(right)])}", True)]
    return Passage("judged" if form < 4 else "choice", tuple(parts))


def _drill(item: dict[str, str], prng: Prng) -> Passage:
    allowed = item["instruction"].rsplit("Answer format: ", 1)[1].split("/")
    prompt = PROMPT_HEAD + item["instruction"] + PROMPT_TAIL
    return Passage("drill", ((prompt, False), (f"the correct answer is {prng.choice(allowed)}", True)))


def passages(world: World, seed: int, *, facts: int, lookups: int, quizzes: int, drills: int) -> Iterator[Passage]:
    """Yield passages without end, of the four kinds in the given proportions."""
    prng = Prng(seed)
    pool = queries(world)
    values = [value for relations in RELATIONS.values() for column in relations.values() for value in column]
    words = [thing.name for thing in world.things]
    words += sorted({word for value in values for word in value.split()})
    streams = [stream(task, "train", world, Prng(prng.bits())) for task in TASKS]
    while True:
        kind = prng.below(facts + lookups + quizzes + drills)
        if kind < facts:
            yield _fact(world, prng)
        elif kind < facts + lookups:
            yield _echo(words, prng) if prng.below(2) else _binding(world, prng)
        elif kind < facts + lookups + quizzes:
            yield _quiz(world, pool, prng)
        else:
            yield _drill(next(prng.choice(streams)), prng)
