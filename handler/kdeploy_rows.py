"""Rows of V1 and V2: each instance or input in a form that a handler can read in each of the common ways.

A row is the value itself (a dict, list or string), so `torch.as_tensor(rows)` works. It also has keys:

* `body` is the value. A value that is not an object is its own `data`, too.
* The other keys of a V1 body, such as `parameters` and `signature_name`, and `parameters` of V2.
* `name`, `shape` and `datatype` of a V2 input.

A key of an instance comes before a key of its request. What a key returns has exactly the types of JSON:
libraries in C, and YAML, refuse subclasses of str, list and dict. A number, true, false or null cannot have
keys, so its row is `{"data": value, "body": value}`.
"""


def make_row(value, keys):
    """Return the row of a value. `keys` are those that it has besides its own."""
    keys = {"body": value, **keys}
    if type(value) is dict:
        row = _Object(value)
    elif type(value) in _BARE:
        row = _BARE[type(value)](value)
        keys["data"] = value
    else:
        row = _Object(data=value, body=value)
    row.kdeploy_keys = keys
    return row


def make_explained_row(value, keys):
    """Return the row of a value as a dict: TorchServe's `explain_handle` reads nothing else."""
    return make_row(value if type(value) is dict else {**keys, "data": value}, {**keys, "body": value})


def make_nested_row(value, keys):
    """Return the row of a value for handlers that read `row["body"]["data"]`."""
    body = value if type(value) is dict else {**keys, "data": value}
    return make_row(body, keys)


class _Object(dict):
    """An object with more keys. Its `keys`, length and iteration contain only its own ones."""

    def __missing__(self, key):
        return self.kdeploy_keys[key]

    def __contains__(self, key):
        return super().__contains__(key) or key in self.kdeploy_keys

    def get(self, key, default=None):
        return super().get(key, self.kdeploy_keys.get(key, default))


class _Bare:
    """A value with keys that is not an object."""

    def __getitem__(self, key):
        return self.kdeploy_keys[key] if isinstance(key, str) else super().__getitem__(key)

    def __contains__(self, key):
        return (isinstance(key, str) and key in self.kdeploy_keys) or super().__contains__(key)

    def get(self, key, default=None):
        return self.kdeploy_keys.get(key, default)

    def keys(self):
        return self.kdeploy_keys.keys()


class _List(_Bare, list): ...


class _Text(_Bare, str): ...


class _Bytes(_Bare, bytes): ...


_BARE = {list: _List, str: _Text, bytes: _Bytes}
