"""Many people at once, people who leave, and rows that fail."""

from __future__ import annotations

import gc
import random
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hf_sae.steering import (
    Edit,
    EngineBusyError,
    Sampling,
    SteeringEngine,
    SteeringPlan,
    SteeringRequest,
    Variant,
    add,
    clamp,
)
from hf_sae.steering.edits import Add

from . import hosts as tiny


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def host():
    return tiny.llama(positions=4096)


@pytest.fixture(scope="module")
def sae():
    return tiny.autoencoder()


@pytest.fixture
def engine(host, tokenizer, sae):
    with SteeringEngine(host, tokenizer, {"": sae}) as engine:
        yield engine


def hooks(host: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host.modules())


def request_of(rng: random.Random, sign: int) -> SteeringRequest:
    prompt = " ".join(f"w{rng.randrange(3, tiny.VOCABULARY)}" for _ in range(rng.randrange(1, 12)))
    edit = (
        add({rng.randrange(tiny.D_SAE): sign * 4.0})
        if rng.random() < 0.5
        else clamp({rng.randrange(tiny.D_SAE): sign * 3.0})
    )
    variants = (Variant("baseline"), Variant("steered", SteeringPlan({"": edit})))
    sampling = Sampling(temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(100))
    return SteeringRequest(prompt, variants, rng.randrange(5, 40), sampling, trace=rng.randrange(2))


def ids(streams) -> list[list[int]]:
    return [[token.id for token in stream.tokens] for stream in streams]


@pytest.mark.parametrize("make", [tiny.llama, tiny.mamba])
def test_twenty_people_with_opposite_plans_get_what_each_gets_alone(make, tokenizer, sae) -> None:
    rng = random.Random(0)
    requests = [request_of(rng, 1 if user % 2 else -1) for user in range(20)]
    with SteeringEngine(make(), tokenizer, {"": sae}) as engine:
        alone = [ids(engine.generate(request)) for request in requests]
    together: dict[int, list[list[int]]] = {}
    sizes = []
    with SteeringEngine(make(), tokenizer, {"": sae}) as engine:

        def user(number: int) -> None:
            time.sleep(rng.random() * 0.1)
            run = engine.start(requests[number])
            for _ in run:
                sizes.append(engine.n_rows)
            together[number] = ids(run.streams)

        threads = [threading.Thread(target=user, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert hooks(engine.host) == 0
    assert [together[number] for number in range(20)] == alone
    assert max(sizes) > 12  # they did share the batch
    assert sum(one[0] != one[1] for one in alone) > 10


def test_nobody_waits_for_the_end_of_anothers_text(engine) -> None:
    long = engine.start(SteeringRequest("w5", (Variant("b"),), max_new_tokens=4000))
    for _ in range(3):
        short = engine.generate(SteeringRequest("w6", (Variant("b"),), max_new_tokens=5), timeout=5)
        assert [len(stream.tokens) for stream in short] == [5]
    assert long.streams[0].state == "running"
    long.stop()


def test_stop_is_immediate_and_frees_the_rows(engine, host) -> None:
    run = engine.start(
        SteeringRequest("w5", (Variant("a"), Variant("b", SteeringPlan({"": add({1: 1.0})}))), max_new_tokens=4000)
    )
    for streams in run:
        if len(streams[0].tokens) > 3:
            break
    assert engine.n_rows in (0, 3)  # leaving the loop has stopped it
    start = time.perf_counter()
    while engine.n_rows and time.perf_counter() - start < 5:
        time.sleep(0.002)
    assert time.perf_counter() - start < 0.2
    assert {stream.state for stream in run.streams} == {"stopped"}
    before = run.streams
    time.sleep(0.05)
    assert run.streams == before
    assert hooks(host) == 0


def test_what_runs_between_two_steps_sees_the_host_as_it_is(engine, host, tokenizer, sae) -> None:
    inputs = tokenizer("w5 w6 w7", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        clean = host(inputs).logits
    run = engine.start(SteeringRequest("w5", (Variant("s", SteeringPlan({"": add({1: 9.0})})),), max_new_tokens=2000))
    for _ in range(10):
        assert torch.equal(engine.call(lambda: host(inputs).logits.detach()), clean)
        assert engine.call(lambda: hooks(host)) == 0
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)
    assert run.streams[0].state == "running"
    run.stop()


@dataclass(frozen=True)
class Fuse(Add):
    """Fails in its n-th forward pass."""

    def delta(self, latents: Tensor, strength: Tensor) -> Tensor:
        BURNT.append(1)
        if len(BURNT) > 4:
            raise RuntimeError("the fuse is out")
        return super().delta(latents, strength)


BURNT: list[int] = []


def test_an_exception_ends_its_row_and_leaves_the_others(engine, host, tokenizer, sae) -> None:
    BURNT.clear()
    plan = SteeringPlan({"": add({3: 4.0})})
    other_request = SteeringRequest("w9 w8", (Variant("b"), Variant("s", plan)), max_new_tokens=20)
    alone = ids(engine.generate(other_request))
    fuse: Edit = Fuse(((2, 1.0),))
    mixed = (Variant("b"), Variant("fuse", SteeringPlan({"": fuse})), Variant("s", plan))
    run = engine.start(SteeringRequest("w9 w8", mixed, max_new_tokens=20, gauge=False))
    other = engine.start(other_request)
    baseline, failed, steered = run.result(20)
    assert (failed.state, failed.note) == ("failed", "the fuse is out")
    assert 0 < len(failed.tokens) < 20
    assert ids([baseline, steered]) == alone
    assert ids(other.result(20)) == alone
    assert hooks(host) == 0


def test_a_prompt_that_fails_leaves_the_others(engine) -> None:
    BURNT[:] = [1] * 10
    fuse = SteeringPlan({"": Fuse(((2, 1.0),))})
    a, b = engine.generate(SteeringRequest("w9", (Variant("b"), Variant("f", fuse)), max_new_tokens=5), timeout=10)
    assert (a.state, b.state, b.tokens) == ("done", "failed", ())


def test_memory_is_flat_and_nothing_is_left_over_five_hundred_requests(engine, host) -> None:
    plan = SteeringPlan({"": add({3: 4.0})})
    counts = []
    for number in range(500):
        run = engine.start(SteeringRequest("w9 w8", (Variant("b"), Variant("s", plan)), max_new_tokens=3, trace=1))
        if number % 3:
            run.result(10)
        else:
            run.stop()
        if number in (100, 499):
            run.result(10)
            engine.call(gc.collect)
            counts.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))
    assert counts[1] <= counts[0] + 5
    assert engine.n_rows == 0
    assert hooks(host) == 0


def test_columns_that_only_a_long_text_needed_go_with_it(engine) -> None:
    def columns() -> int:
        return engine._batch.cache.layers[0].keys.shape[-2]

    short = engine.start(SteeringRequest("w5", (Variant("b"),), max_new_tokens=4000))
    long = engine.start(SteeringRequest("w5 " * 500, (Variant("b"),), max_new_tokens=3000))
    while long.streams[0].state == "waiting":
        time.sleep(0.001)
    assert engine.call(columns) > 500
    long.stop()
    time.sleep(0.1)
    assert engine.call(columns) < 500
    short.stop()


def test_what_has_no_room_waits_and_what_cannot_wait_is_told(host, tokenizer, sae) -> None:
    with SteeringEngine(host, tokenizer, {"": sae}, max_rows=1, max_waiting=1) as engine:
        first = engine.start(SteeringRequest("w9", (Variant("b"),), max_new_tokens=3000))
        while first.streams[0].state == "waiting":
            time.sleep(0.001)
        second = engine.start(SteeringRequest("w9", (Variant("b"),), max_new_tokens=3))
        with pytest.raises(EngineBusyError, match="1 request"):
            engine.start(SteeringRequest("w9", (Variant("b"),), max_new_tokens=3))
        assert second.streams[0].state == "waiting"
        first.stop()
        assert second.result(10)[0].state == "done"


def test_a_closed_engine_stops_its_runs_and_takes_no_more(host, tokenizer, sae) -> None:
    before = set(threading.enumerate())
    engine = SteeringEngine(host, tokenizer, {"": sae})
    run = engine.start(SteeringRequest("w9", (Variant("b"),), max_new_tokens=4000))
    engine.close()
    assert run.streams[0].state == "stopped"
    with pytest.raises(RuntimeError, match="closed"):
        engine.start(SteeringRequest("w9", (Variant("b"),), max_new_tokens=3))
    assert set(threading.enumerate()) <= before, "its thread has ended"
