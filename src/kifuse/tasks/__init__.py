"""Tasks: examples, streams, readers of the published layouts, encoding and the memory buffer."""

from kifuse.tasks.encoding import Encoded, Encoder
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.overlaps import Overlap
from kifuse.tasks.readers import read_stream, read_task
from kifuse.tasks.schedule import training_order
from kifuse.tasks.task import Conversation, Example, Task, TaskStream

__all__ = [
    "Conversation",
    "Encoded",
    "Encoder",
    "Example",
    "MemoryBuffer",
    "Overlap",
    "Task",
    "TaskStream",
    "read_stream",
    "read_task",
    "training_order",
]
