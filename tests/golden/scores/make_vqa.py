"""Writes vqa.json: accuracies by the program of the VQA benchmark.

python tests/golden/scores/make_vqa.py PythonEvaluationTools/vqaEvaluation/vqaEval.py, which is in
the benchmark's repository, GT-Vision-Lab/VQA; it is of Python 2.
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ANSWERS = (
    "yes|Yes|no|2|two|Two.|a dog|dog|the dog|dog.|dont know|don't know|3.5|3.5.|1,000|1000"
    "|red, blue|red and blue|red/blue|red blue|black-and-white|black and white|o'clock|5 oclock"
    "|it's|its|none|0|t-shirt|t shirt|(left)|left|what?|what ?|yall'd've|y'all'd've|hes|couldnt've"
    "|10:30|A|U.S.A.|new\tyork|new york |somebodys|shouldn'tve go|well|we'll|an orange|Ten"
).split("|")
QUESTIONS = 400


def main(path):
    text = re.sub(r'print ("[^"]*")', r"print(\1)", Path(path).read_text())
    program = {"__name__": "vqaEval"}
    exec(compile(text.replace("\t", "    "), path, "exec"), program)
    rng = np.random.default_rng(0)
    asked, answered, given = {}, {}, []
    for i in range(QUESTIONS):
        near = rng.integers(0, len(ANSWERS) - 3)
        pool = ANSWERS[near : near + rng.integers(1, 5)]
        references = [str(rng.choice(pool)) for _ in range(10)]
        answer = str(rng.choice(pool))
        given.append({"answer": answer, "references": references})
        answers = [{"answer": text, "answer_id": n} for n, text in enumerate(references)]
        asked[i] = {"answers": answers, "question_type": "", "answer_type": ""}
        answered[i] = {"answer": answer}
    questions = SimpleNamespace(qa=asked, getQuesIds=lambda: list(asked))
    evaluation = program["VQAEval"](questions, SimpleNamespace(qa=answered), n=6)
    evaluation.evaluate()
    for i, question in enumerate(given):
        question["accuracy"] = evaluation.evalQA[i] / 100
    normal = {
        text: evaluation.processDigitArticle(evaluation.processPunctuation(text))
        for text in ANSWERS
    }
    found = {"questions": given, "normalized": normal}
    (Path(__file__).parent / "vqa.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
