"""Whether there is a way from source to target, and what is said where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brenier
from brenier.errors import BrenierWarning, InputError
from brenier.passages import check_passage, check_paths
from brenier.state_costs import (
    Box,
    Complement,
    Disc,
    JaxFunction,
    Obstacle,
    OccupancyGrid,
    Shape,
    Union,
    Wall,
)

RNG = np.random.default_rng(0)
LEFT = RNG.uniform((-1.25, -1), (-1, 1), (400, 2))
RIGHT = -LEFT


def test_a_wall_is_passed_through_its_gap_only():
    check_passage(Obstacle(Wall(0, -0.1, 0.1, gaps=[(-0.25, 0.25)])), LEFT, RIGHT)
    closed = Obstacle(Wall(0, -0.1, 0.1))
    with pytest.raises(InputError, match="a free path from source to target, found none"):
        check_passage(closed, LEFT, RIGHT)
    with pytest.raises(InputError, match="free path"):
        check_passage(Obstacle(closed.shape, 1.0, softness=0.1), LEFT, RIGHT)
    # nothing is known about a function
    check_passage(JaxFunction(lambda x: 100.0 * (jnp.abs(x[0]) < 0.1)), LEFT, RIGHT)


def test_a_narrow_passage_is_found_on_a_finer_grid():
    # 1/400 of the extent; the coarse nodes are 1/150 of it apart
    check_passage(Obstacle(Wall(0, -0.1, 0.1, gaps=[(0.3, 0.3065)])), LEFT, RIGHT)
    with pytest.raises(InputError, match="free path"):
        check_passage(Obstacle(Wall(0, -0.1, 0.1, gaps=[(0.3, 0.3001)])), LEFT, RIGHT)


def test_the_way_may_lead_far_around():
    check_passage(Obstacle(Box((-0.1, -20), (0.1, 20))), LEFT, RIGHT)


def test_a_picture_blocks_the_way_too():
    maze = np.zeros((9, 9), bool)
    maze[:, 4] = True
    extent = (-1.5, 1.5, -1.5, 1.5)
    with pytest.raises(InputError, match="free path"):
        check_passage(OccupancyGrid(maze, extent, outside="wall"), LEFT, RIGHT)
    check_passage(OccupancyGrid(maze, extent), LEFT, RIGHT)  # around the picture
    maze[7, 4] = False
    check_passage(OccupancyGrid(maze, extent, outside="wall"), LEFT, RIGHT)


def test_points_that_are_cut_off_are_counted():
    cell = Complement(Box((-3, -3), (3, 3)))
    wall = Wall(0, -0.1, 0.1)
    both = np.concatenate([LEFT[:100], RIGHT[:300]])
    with pytest.warns(BrenierWarning, match=r"25\.00% of the source points have no free path"):
        check_passage(Obstacle(wall), both, RIGHT)
    with pytest.warns(BrenierWarning, match=r"25\.00% of the target points have no free path"):
        check_passage(Obstacle(Union(wall, cell)), RIGHT, both)
    check_passage(Obstacle(wall), both, both)


@pytest.mark.parametrize("dim", [2, 3])
def test_points_in_the_obstacle_are_counted(dim):
    x, y = np.zeros((200, dim)), np.zeros((200, dim))
    x[:, 0], y[:, 0] = np.linspace(-2, -1, 200), np.linspace(1, 2, 200)
    with pytest.warns(BrenierWarning, match=r"5\.00% of the source .* \(10 of 200\)"):
        check_passage(Obstacle(Disc(x[0], x[10, 0] - x[0, 0])), x, y)
    with pytest.raises(InputError, match=r"Expected target points outside .* found all 200 inside"):
        check_passage(Obstacle(Disc(y[0], 3 / 2)), x, y)


def test_a_check_of_a_shape_written_by_a_user():
    class Corner(Shape):
        def distance(self, x):
            return jnp.max(x)

    assert not Corner().inside(jnp.array([-1.0, 0.0]))
    with pytest.raises(InputError, match="source points outside"):
        check_passage(Obstacle(Corner()), LEFT - 5, RIGHT)


def test_a_picture_beside_the_points_is_named():
    picture = np.zeros((4, 4), bool)
    picture[1, 1] = True
    with pytest.warns(BrenierWarning, match=r"beside them, at \(20\.0, 30\.0, 0\.0, 5\.0\)"):
        check_passage(OccupancyGrid(picture, (20, 30, 0, 5)), LEFT, RIGHT)
    check_passage(OccupancyGrid(picture, (-0.1, 0.1, -0.1, 0.1)), LEFT, RIGHT)


def test_paths_through_a_ball_are_counted():
    """`u = 3 x₁` moves everybody straight on by 3, those within the ball's shadow through it."""
    x = RNG.normal(size=(100, 3)) * [0.1, 1.0, 1.0] - [1.5, 0.0, 0.0]
    ball = Obstacle(Disc(np.zeros(3), 3.0))
    problem = brenier.TransportProblem(x - [3.0, 0.0, 0.0], x, state_cost=ball)
    ahead = lambda t, x: 3.0 * x[0]  # noqa: E731
    with pytest.warns(BrenierWarning, match="100% of the paths lead through the obstacle"):
        check_paths(ahead, problem, x)
    check_paths(ahead, problem.replace(state_cost=Obstacle(Disc(np.full(3, 9.0), 1.0))), x)


@pytest.mark.slow
def test_a_state_cost_that_fails_in_the_middle_of_a_fit():
    calls = []

    def simulator(points):
        calls.append(len(points))
        if len(calls) > 20:
            raise RuntimeError("the licence has expired")
        return np.zeros(len(points))

    simulator.batched = True
    problem = brenier.TransportProblem(LEFT, RIGHT, state_cost=simulator)
    method = brenier.HOTA(pool=32, improved=16, refreshed=8, widths=(8,), rollout_steps=4)
    with pytest.raises(InputError, match="state cost raised RuntimeError: the licence has expired"):
        brenier.fit(problem, method, key=jax.random.key(0), steps=50)
