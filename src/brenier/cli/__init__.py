"""The command `brenier`.

    brenier fit SOURCE TARGET --out map.brenier     fit a map between two files of points
    brenier transport map.brenier POINTS --out OUT  move points with it, either way, to any time
    brenier trajectories map.brenier POINTS --out OUT
                                                    their whole paths, also as picture and film
    brenier evaluate map.brenier SOURCE TARGET      score it against sampling noise and baselines
    brenier color A B --out FOLDER                  exchange the colours of two pictures
    brenier info map.brenier                        say what is in a file
    brenier demo                                    all of it on two photographs, in a minute

With `--json`, stdout holds exactly one JSON object: the result, or `{"error": {"type", "message",
"exit_status"}}`. Everything else goes to stderr.

Exit status: 0 done; 1 the work failed, or `evaluate --check` found a map that does not pass; 2 the
input or the arguments are wrong; 3 another process of a fit by several was lost: start all of them
again. Ctrl-C during a fit keeps the best map so far: once it is written the exit status is 0, and
the `status` of the map is "interrupted". Without a map to write, Ctrl-C ends with 1.
"""

from brenier.cli._app import app as app
from brenier.cli._app import main as main
