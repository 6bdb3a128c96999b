"""Invented cells, as meta_test would have written them."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

N_EPISODES, N_QUERY = 40, 15
POOL_ROWS = {"single_teacher": -2, "pool_features": 9, "pool_log_probabilities": 10}
LEARNER_ROWS = {"one_step": 0, "icfil": 2, "nearest_class_mean": -1, "linear_probe": 1}
PROTOCOLS = {"one_step": "1 step, lr 0.01, transductive", "icfil": "100 head steps, transductive"}


def row_of(correct: np.ndarray, n_way: int, protocol: str) -> dict[str, Any]:
    percent = 100 * correct / (n_way * N_QUERY)
    std = float(percent.std(ddof=1))
    return {
        "accuracy": round(float(percent.mean()), 4),
        "ci95": round(1.96 * std / math.sqrt(len(correct)), 4),
        "std": round(std, 4),
        "protocol": protocol,
        "snapshot": 10,
        "val_accuracy": 33.0,
        "correct": correct.tolist(),
    }


def fake_cell(
    key: str, seed: int = 0, /, *, budget: str = "quick", **changes: Any
) -> dict[str, Any]:
    """A cell whose episodes are equally hard for all methods of its task; `changes` win."""
    scenario, dataset, way, shot, method = key.split("-")
    n_way = int(way.removesuffix("way"))
    hard = np.random.default_rng(zlib.crc32(f"{way}{shot}".encode())).normal(0, 6, N_EPISODES)
    rng = np.random.default_rng(zlib.crc32(f"{key}{seed}".encode()))
    middle = 0.4 * n_way * N_QUERY + {"eci": 1, "random": -10}.get(method, 0)
    trained = method.startswith(("ei", "eci", "protonet", "anil"))
    data_based = method in ("maml_dagger", "real_maml", "real_protonet")
    rows = {
        name: row_of(
            np.clip(np.rint(middle + shift + hard + rng.normal(0, 1, N_EPISODES)), 0, None),
            n_way,
            PROTOCOLS.get(name, "no step, inductive"),
        )
        for name, shift in (POOL_ROWS if method == "pool" else LEARNER_ROWS).items()
    }
    classes = ["apple", "bear <&>", "chair", "dolphin"]
    matrix = np.round(np.eye(4) * 0.4 + 0.3, 3)
    snapshots = [
        {"iteration": i, "one_step": 30.0 + i, "nearest_class_mean": 31.0} for i in (5, 10)
    ]
    cell = {
        "key": key,
        "scenario": scenario,
        "dataset": dataset,
        "datasets": [dataset, "mini_imagenet"] if scenario == "mh" else [dataset],
        "n_way": n_way,
        "n_shot": int(shot.removesuffix("shot")),
        "n_query": N_QUERY,
        "method": method,
        "seed": seed,
        "budget": budget,
        "n_episodes": N_EPISODES,
        "data_used": "all real meta-training images" if data_based else "none",
        "rows": rows,
        "selection": snapshots if trained else [],
        "curve": [
            {"iteration": i, "accuracy": 30.0 + i + rng.normal(), "ci95": 0.8}
            for i in range(0, 11, 2)
            if trained
        ],
        "history": {
            "iteration": list(range(1, 11)) if trained else [],
            "outer_accuracy": np.linspace(0.2, 0.9, 10).tolist() if trained else [],
            "switches": [8, 9] if method.startswith("eci") else [],
        },
        "class_accuracy": [{"icfil": dict(zip(classes, (40.0, 30.0, 50.0, 35.0), strict=True))}],
        "similarity": {
            "own": 0.7,
            "other": 0.3,
            "nearest_is_own": 100.0,
            "classes": classes,
            "matrix": matrix.tolist(),
        }
        if trained
        else None,
        "provenance": [
            {
                "stage": stage,
                "commit": "abc1234567",
                "minutes": minutes,
                "device": "cpu",
                "hardware": "AMD EPYC, 2 cores",
                "threads": 2,
                "versions": {"torch": "2.13.0", "python": "3.11.2"},
            }
            for stage, minutes in (("pretrain", 4.2), ("meta_train", 12.0), ("meta_test", 2.5))
        ],
        "command": f"dvc exp run -S scenario={scenario} -S dataset={dataset} -S n_way={n_way}"
        f" -S n_shot={shot.removesuffix('shot')} -S method={method} -S seed={seed}"
        f" -S budget={budget}",
    }
    return {**cell, **changes}


def write_cell(root: Path, key: str, seed: int = 0, /, **changes: Any) -> Path:
    """The cell's file under `root`/reports."""
    cell = fake_cell(key, seed, **changes)
    path = root / "reports" / cell["budget"] / f"seed-{seed}" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell))
    return path
