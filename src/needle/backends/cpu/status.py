"""The words that a call of a program and its code tell each other.

The number of the fault, the place and the value of what is bad; the rows of this call, and into how
many tasks they are split; and whether another task reports already.
"""

STATUS_WORDS = 6
ROWS_WORD, TASKS_WORD, LOCK_WORD = 3, 4, 5
