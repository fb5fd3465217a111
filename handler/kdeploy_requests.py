"""A request of a batch as the handler gets it: its rows and their copies, and its values or its failure."""

import pickle

_CONSTANT = {str, bytes, int, float, bool, type(None)}


class Request:
    """The rows of one request, and how to write their values.

    `dress(row, value)` makes the row with this number readable for a handler; without it, rows are
    TorchServe's. `write(values)` returns the answer as bytes; without it, the only value is the answer.
    `separate`: each row needs its own call. `whole`: all rows together are one call.
    """

    def __init__(self, index, rows=(), *, dress=None, write=None, separate=False, whole=False, failure=None):
        self.index = index
        self.rows = rows
        self.dress = dress
        self.write = write
        self.separate = separate
        self.whole = whole
        self.failure = failure  # (status, {"error": message, ...})
        self.error = None  # the class of the handler's error
        self.values = []
        self.any_count = False  # whether an only row can have any number of values
        self.is_trial = False  # whether another reading follows if this one fails
        self._copies = None

    def keep_copies(self):
        """Copy the rows, so that `take` can return them again. False if they are nested too deeply."""
        try:
            self._copies = [_copy(row) if _is_flat(row) else Pickled(row) for row in self.rows]
        except RecursionError:
            return False
        return True

    def take(self, number, again=False):
        """Return a row for one call, which can change it. `again`: as it was before the first call."""
        row = self._copies[number] if again else self.rows[number]
        row = row.load() if type(row) is Pickled else _copy(row) if again else row
        return self.dress(number, row) if self.dress else dict(row)

    def fail(self, failure, number):
        """Let the request fail, with a message for the client about row `number`."""
        self.failure = failure.status, {"error": failure.message, "row": number}
        self.error = failure.kind


class Pickled:
    """A copy of JSON. Raises RecursionError if it is nested too deeply."""

    def __init__(self, value):
        self._data = pickle.dumps(value, -1)

    def load(self):
        """Return the value, which can be changed."""
        return pickle.loads(self._data)  # noqa: S301


def _is_flat(row):
    """Return whether a row holds only constants, so that a shallow copy is enough."""
    values = row.values() if type(row) is dict else row if type(row) is list else [row]
    return _CONSTANT.issuperset(map(type, values))


def _copy(row):
    return row.copy() if type(row) in (dict, list) else row
