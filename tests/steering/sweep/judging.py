"""Functions that tests of scoring name."""

NUMBER = 3


def length(_prompt, answer):
    return len(answer)


def judge(prompts, answers):
    return [0.5 if "France" in prompt else 1.0 for prompt, _ in zip(prompts, answers, strict=True)]


def lazy(_prompts, _answers):
    return [1.0]


def words(_prompt, _answer):
    return "much"


def nothing(_prompt, _answer):
    return float("nan")


def of_hundred(prompt, answer):
    return sum((prompt + answer).encode()) % 101


def of_one(prompts, answers):
    return [of_hundred(*pair) / 100 for pair in zip(prompts, answers, strict=True)]


BROKEN = True


def broken(prompt, answer):
    if BROKEN:
        raise KeyError("no such thing")
    return of_hundred(prompt, answer)


def broken_of_all(prompts, answers):
    for pair in zip(prompts, answers, strict=True):
        yield broken(*pair) / 100
