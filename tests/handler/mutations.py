"""Requests of every protocol, and hostile changes of them."""

import json
import struct

from tests.handler.torchserve_worker import Ask

JSON = "application/json"
_ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"data": []},
]
_TYPES = [
    "",
    JSON,
    "text/plain",
    "image/png",
    "application/octet-stream",
    "multipart/form-data",
    "\u00fc/\x00",
]
_HEADERS = ["Inference-Header-Content-Length", "inference-header-content-length", "explain", "describe"]
_HEADERS += ["Content-Type", "kdeploy-api", "KDEPLOY-API"]
_TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"\x00",
    b"\xff",
    b"\\u",
]


def _tensor(datatype, shape, data, **more):
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data, **more}


def _binary(*numbers):
    sent = {"name": "x", "datatype": "FP32", "shape": [len(numbers)]}
    sent["parameters"] = {"binary_data_size": 4 * len(numbers)}
    text = json.dumps({"inputs": [sent], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return [("body", "", text + struct.pack(f"<{len(numbers)}f", *numbers))], headers


def _json(body, **headers):
    return [("body", JSON, json.dumps(body).encode())], headers


SEEDS = [
    _json({"instances": [{"data": "QUJD"}, [1, 2], "text", 5]}),
    _json({"instances": [[1.5, 2]], "parameters": {"top": 3}, "signature_name": "a"}),
    _json({"instances": [{"data": "QUJD"}]}, explain="True"),
    _json({"inputs": [_tensor("FP32", [2, 3], [1, 2, 3, 4, 5, 6])]}),
    _json({"id": "7", "inputs": [_tensor("INT64", [-1, 2], [[1, 2], [3, 4]])], "outputs": [{"name": "y"}]}),
    _json({"inputs": [_tensor("BYTES", [2], ["a", "b"]), {**_tensor("BOOL", 1, [True]), "name": "y"}]}),
    _json({"inputs": [_tensor("BYTES", -1, "QUJD")], "parameters": {"binary_data_output": True}}),
    _json({"inputs": [_tensor("UINT8", [1, 2, 2], [[[1, 2], [3, 4]]])]}, describe="True"),
    _json({"instances": [1], "inputs": []}, **{"kdeploy-api": "torchserve"}),
    _json({"inputs": [_tensor("FP64", [1], [1])]}, **{"kdeploy-api": "torchserve"}),
    _json({"data": "QUJD"}),
    _json([1, 2, {"a": None}]),
    _binary(1.0, 2.0, 3.0),
    ([("body", "", b'{"instances": ["no type"]}')], {}),
    ([("data", "text/plain", b'{"inputs": ["text"]}')], {}),
    ([("body", "image/png", b"\x89PNG\r\n{")], {}),
    ([("a", "", b"\x00"), ("body", JSON, b'{"instances": [1]}')], {"content-type": "multipart/form-data"}),
    ([], {}),
]


def mutated(random):
    """Return a request that one to four changes were made to."""
    parts, headers = random.choice(SEEDS)
    parts, headers = [list(part) for part in parts], dict(headers)
    for _ in range(random.randint(1, 4)):
        random.choice(
            [_change_json, _change_json, _change_bytes, _change_bytes, _change_parts, _change_headers]
        )(random, parts, headers)
    return Ask(tuple(map(tuple, parts)), headers)


def _change_json(random, parts, _headers):
    """Replace, remove or repeat one value at any depth."""
    for part in parts:
        try:
            root = [json.loads(part[2])]
        except (ValueError, RecursionError):
            continue
        holder, key = root, 0
        while isinstance(holder[key], (dict, list)) and holder[key] and random.random() < 0.8:
            holder = holder[key]
            key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        choice = random.random()
        if choice < 0.6:
            holder[key] = random.choice(_ODD)
        elif choice < 0.8 and holder is not root:
            del holder[key]
        elif isinstance(holder, list) and holder is not root:
            holder *= random.randint(2, 5)
        else:
            holder[key] = [holder[key]]
        part[2] = json.dumps(root[0] if root else None).encode()


def _change_bytes(random, parts, _headers):
    """Insert, remove, repeat or replace bytes."""
    for part in parts:
        data, start = part[2], random.randint(0, len(part[2]))
        end = min(len(data), start + random.randint(0, 8))
        middle = [
            random.choice(_TOKENS),
            b"",
            data[start:end] * 3,
            bytes([random.randrange(256)]),
            random.choice(_TOKENS) * random.choice([1, 3, 5000]),
        ]
        part[2] = data[:start] + random.choice(middle) + data[end:]


def _change_parts(random, parts, _headers):
    """Change the types or the names of parts, or add one."""
    if parts and random.random() < 0.7:
        part = random.choice(parts)
        if random.random() < 0.7:
            part[1] = random.choice(_TYPES)
        else:
            part[0] = random.choice(["data", "body", "instances", "", "x" * 300])
    else:
        parts.append([random.choice(["data", "body", "file"]), random.choice(_TYPES), b'{"instances": [7]}'])


def _change_headers(random, _parts, headers):
    """Set or remove a header that the adapter reads."""
    name = random.choice(_HEADERS)
    values = ["", "0", "1", "-5", "1e3", "9" * 30, "True", "v1", "torchserve", "multipart/x", "\u0663"]
    headers[name] = random.choice(values)
