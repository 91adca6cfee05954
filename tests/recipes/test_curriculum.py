"""Phases and their rows; clips at several frame rates."""

import pytest
import torch

from course_lib.recipes.curriculum import (
    FRAME_RATES,
    Phase,
    canonical_rate_rows,
    find_phase,
    render_by_rate,
    rows_with_motion,
)
from course_lib.world import Sampler, render

PHASES = [Phase("first", 2, 8), Phase("second", 3, 2), Phase("last", None, 4)]


def test_every_step_is_in_its_phase():
    steps = [find_phase(PHASES, number) for number in range(7)]
    assert [step.phase for step in steps] == ["first"] * 2 + ["second"] * 3 + ["last"] * 2
    assert [step.index for step in steps] == [0, 1, 0, 1, 2, 0, 1]
    assert [step.batch_size for step in steps] == [8, 8, 2, 2, 2, 4, 4]
    assert find_phase(PHASES, 10**6).phase == "last"


def test_continued_rows_follow_each_other_through_all_phases():
    rows = [find_phase(PHASES, number).rows(continued=True) for number in range(8)]
    assert torch.equal(torch.cat(rows), torch.arange(16 + 6 + 12))


def test_other_rows_start_anew_in_every_phase():
    starts = [find_phase(PHASES, number).rows()[0].item() for number in range(7)]
    assert starts == [0, 8, 0, 2, 4, 0, 4]
    assert find_phase(PHASES, 3).rows().tolist() == [2, 3]


def test_a_phase_without_steps_is_skipped():
    assert find_phase([Phase("empty", 0, 8), *PHASES], 0).phase == "first"


def test_a_step_beyond_the_last_phase_is_refused():
    with pytest.raises(ValueError, match="number: expected a step of the 2 phases, got 5"):
        find_phase(PHASES[:2], 5)


def test_clips_are_rendered_at_the_rate_of_their_row():
    sampler = Sampler("train", seed=3)
    scenes = [sampler(row) for row in range(8)]
    rows_of_rate = list(render_by_rate(scenes, num_frames=3, size=16))
    assert [fps for _, fps, _ in rows_of_rate] == list(FRAME_RATES)
    video = torch.empty(8, 3, 3, 16, 16)
    for rows, _, clips in rows_of_rate:
        video[rows] = clips.video
    for row in (0, 4, 5, 7):
        fps = FRAME_RATES[row % len(FRAME_RATES)]
        clip = render([scenes[row]], num_frames=3, size=16, fps=fps, random_time_offset=True)
        torch.testing.assert_close(video[row], clip.video[0])


def test_rows_by_rate_and_by_motion():
    assert canonical_rate_rows(14).tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 12, 13]
    sampler = Sampler("train", seed=3)
    rows = rows_with_motion(sampler, "spinning", canonical_rate_rows(300))
    assert len(rows) > 3
    assert all(sampler(row).motion == "spinning" and row % 6 < 4 for row in rows.tolist())
