"""What a supervisor and its children say to each other, on a socket of its own for each child.

To the engine go CONTROL records; to a worker one byte, the number of signals so far; and a worker says STARTED.
What both sides must know of a process's end stands here, too.
"""

import struct

CONTROL = struct.Struct("<cd")  # a code and its number
STOP = b"S"  # with the seconds that accepted work may take
STARTED = b"R"  # connections are accepted
ATTACH = b"A"  # with a new worker's entry of the scoreboard, and the descriptor of its socket
BAD_INPUT, ENGINE_DIED = 2, 3  # exit codes of the engine and, following it, of the service
ANSWER_SECONDS = 5  # for the last answers to leave, after the time that the engine has
