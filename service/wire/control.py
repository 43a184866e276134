"""What a supervisor and its children say to each other, on a socket of its own for each child.

To the engine go CONTROL records; to a worker one byte, the number of signals so far; and a worker says STARTED.
"""

import struct

CONTROL = struct.Struct("<cd")  # a code, and with STOP the seconds that accepted work may take
STOP = b"S"
STARTED = b"R"  # connections are accepted
ATTACH = b"A"  # comes with the descriptor of a new worker's socket
