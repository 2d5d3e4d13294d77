"""Which feedback a log held lately: a log that is begun anew is told, so that what is sent again counts once."""

from collections import OrderedDict, deque
from typing import Final

from feedback.state import START
from feedback.store import Entry, Marks, fields_of

FIELDS_REMEMBERED: Final = 40_000  # two for each feedback


class Remembered:
    """Marks as they came, and only taken apart when they are asked for: thousands are held and hardly ever needed.

    since: all feedback after this token is remembered.
    """

    def __init__(self, marks: Marks | None = None, token: str = START) -> None:
        """marks: of what came before the token."""
        self.since = marks.since if marks else START
        self._before: OrderedDict[bytes, bytes] = OrderedDict(marks.fields if marks else {})
        self._token = token
        self._entries: deque[Entry] = deque()

    def add(self, entry: Entry) -> None:
        """The next of the log."""
        if not entry.mark:
            return
        self._entries.append(Entry("", entry.token, b"", entry.mark))
        while len(self._before) + 2 * len(self._entries) > FIELDS_REMEMBERED:
            if self._before:
                self._before.popitem(last=False)
                self.since = self._token
            else:
                self.since = self._entries.popleft().token

    def marks(self) -> Marks:
        fields = dict(self._before)
        for entry in self._entries:
            fields |= fields_of(entry)
        return Marks(self.since, fields)
