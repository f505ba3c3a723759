"""Forecast of a run: its arithmetic with an artificial clock, and its text."""

import json

import pytest
import torch

from cxrlib.training import fit, forecast, schedules

FILMS = forecast.Films(train=1000, val=100, test=200)


def test_seconds_are_those_of_training_validation_and_evaluation():
    recipe = schedules.recipe("modern", 5, epochs=3)
    speeds = forecast.Speeds({recipe.groups: 10.0}, reading=100.0, memory=0)
    expected = 3 * (1000 / 10 + 100 / 100) + (3 * 100 + 200) / 100 + 2 * forecast.NOTEBOOK
    assert forecast.seconds([recipe], FILMS, speeds, notebooks=2) == pytest.approx(expected)


def test_a_head_on_films_that_do_not_vary_reads_them_once_however_many_epochs():
    speeds = forecast.Speeds({("fc",): 10.0}, reading=100.0, memory=0)
    took = [forecast.seconds([schedules.recipe("modern", 1, epochs=n)], FILMS, speeds, 0) for n in (1, 50)]
    assert took[0] == took[1] == pytest.approx((1000 + 100) / 100 + (300 + 200) / 100)
    varied = forecast.seconds([schedules.recipe("modern", 1, epochs=50, augment="light")], FILMS, speeds, 0)
    assert varied > 50 * 1000 / 10


def test_a_stage_without_epochs_costs_its_reading_alone():
    speeds = forecast.Speeds({}, reading=100.0, memory=0)
    assert forecast.seconds([schedules.recipe("control", 3)], FILMS, speeds, 0) == pytest.approx(5)


def test_past_its_budget_the_other_speeds_are_computed_from_operations(monkeypatch):
    timed, now = [], iter(range(0, 10_000, 100))

    def training(model, recipe, *_):
        timed.append(recipe.number)
        return lambda: None

    monkeypatch.setattr(forecast, "_training_step", training)
    monkeypatch.setattr(forecast, "_prediction_step", lambda *_: lambda: None)
    recipes = [schedules.recipe("modern", number) for number in range(1, 6)]
    speeds = forecast.measure(recipes, 32, 4, torch.device("cpu"), clock=lambda: next(now))
    assert timed == [5], "each step took longer than the budget for all"
    assert set(speeds.training) == {recipe.groups for recipe in recipes}
    in_order = [speeds.training[recipe.groups] for recipe in recipes]
    assert in_order == sorted(in_order, reverse=True), "the fewer groups learn, the faster it is"


@pytest.mark.slow
def test_it_is_told_in_two_lines(capsys):
    asked = {"stages": [{"schedule": "scratch", "number": 2}, {"schedule": "scratch", "number": 4}]}
    asked |= {"films": {"train": 100, "val": 20, "test": 30}, "size": 32, "batch_size": 4, "notebooks": 3}
    forecast.print_forecast(json.dumps(asked))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Device: ")
    assert "films/s in stages 2, 4, prediction about" in first
    assert second.startswith("From here on the chain takes about ")


def test_a_batch_that_does_not_fit_is_told_with_one_that_does_and_how_long_that_takes(monkeypatch):
    def measure(recipes, size, batch_size, device):
        if batch_size > 48:
            raise fit.NoRoomError(48)
        return forecast.Speeds({recipes[0].groups: 10.0}, reading=100.0, memory=0)

    monkeypatch.setattr(forecast, "measure", measure)
    said = forecast.forecast_sentences([schedules.recipe("modern", 5)], FILMS, 224, 128, 3)
    assert 'A batch of 128 films does not fit into its memory: try batch_size 32 with override="accumulate=4".' in said
    assert "With that: Training about 10 films/s" in said
    twice = schedules.recipe("modern", 5, accumulate=2)
    assert '"accumulate=8"' in forecast.forecast_sentences([twice], FILMS, 224, 128, 3), "on top of the recipe's own"


@pytest.mark.parametrize("size", [224, 320, 384, 512])
def test_memory_of_a_film_grows_with_its_area_and_halves_with_its_numbers(size):
    recipe = schedules.recipe("published", 1)
    one = forecast.bytes_per_film(recipe, size, torch.float32)
    assert one == pytest.approx(forecast.bytes_per_film(recipe, 64, torch.float32) * (size / 64) ** 2, rel=0.06)
    assert forecast.bytes_per_film(recipe, size, torch.bfloat16) == one / 2
    assert one > forecast.bytes_per_film(schedules.recipe("modern", 2), size, torch.float32), "frozen layers keep none"


def test_the_batch_that_fits_uses_the_memory_that_is_counted_on():
    recipes = [schedules.recipe("published", 1)]
    fits = forecast.films_that_fit(recipes, 384, 15e9, torch.float16)
    film = forecast.bytes_per_film(recipes[0], 384, torch.float16)
    assert fits * film < forecast.RESERVE * 15e9 < (fits + 1) * film + forecast.COPIES * 4 * 24e6
    assert forecast.films_that_fit(recipes, 384, 1e8, torch.float16) == 0


def test_numbers_are_said_as_roughly_as_they_are_known():
    assert [forecast.rounded(x) for x in (3.27, 38.4, 123, 3187, 15230)] == ["3.3", "38", "120", "3,200", "15,000"]
    assert [forecast.clock_words(x) for x in (3, 44, 700, 9000)] == ["10 s", "40 s", "12 min", "2 h 30 min"]
