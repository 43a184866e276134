"""Bodies of the Open Inference Protocol: JSON, or JSON followed by raw tensors (its binary extension).

https://github.com/kserve/open-inference-protocol
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from service.errors import InvalidRequest, echo
from service.web.dialects import invalid
from service.web.schemas import Fields

LENGTH_HEADER = "Inference-Header-Content-Length"


def _scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"must be true, false, a number or text, not {echo(value)}")
    return value


Parameter = Annotated[
    Any,
    BeforeValidator(_scalar),
    WithJsonSchema({"anyOf": [{"type": kind} for kind in ("boolean", "number", "string")]}),
]
INTEGERS = [f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)]
MAX_ELEMENTS = 1024  # of one tensor; far more than a request may ask for


class InputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None  # nested or flat; absent where the tensor is binary
    parameters: dict[str, Parameter] = {}


class RequestedOutput(BaseModel):
    name: str
    parameters: dict[str, Parameter] = {}


class InferenceRequest(BaseModel):
    """What clients add of their own, kserve's model_name for one, is not looked at."""

    id: str | None = Field(None, max_length=256)
    parameters: dict[str, Parameter] = {}
    inputs: list[InputTensor] = Field(max_length=16)
    outputs: list[RequestedOutput] = Field([], max_length=16)

    def wants_binary(self, output: str) -> bool:
        """Whether an output is sent raw: by its own binary_data, or else by the request's binary_data_output."""
        everywhere = self.parameters.get("binary_data_output", False)
        own = [wanted.parameters.get("binary_data", everywhere) for wanted in self.outputs if wanted.name == output]
        return bool(own[0] if own else everywhere)


class OutputTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[int] | None = None
    parameters: dict[str, Parameter] | None = None


class InferenceResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Parameter] | None = None
    outputs: list[OutputTensor]


def parse(body: bytes, json_length: str | None) -> tuple[InferenceRequest, dict[str, list[int]]]:
    """Parse a body: returns the request, and its inputs as flat lists of integers by name.

    Args:
        json_length: the header Inference-Header-Content-Length, if there is one.

    Raises:
        InvalidRequest: names the tensor, and what is wrong with it.
    """
    length = len(body) if json_length is None else _whole(json_length)
    if length > len(body):
        raise InvalidRequest.field(
            "Inference-Header-Content-Length", f"{length} bytes of JSON in a body of {len(body)}"
        )
    try:
        request = InferenceRequest.model_validate_json(body[:length])
    except ValidationError as error:
        raise invalid(error.errors(), Fields([], {})) from error
    binary = body[length:]
    inputs: dict[str, list[int]] = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise InvalidRequest.field(tensor.name, "given more than once in the inputs")
        inputs[tensor.name], binary = _read(tensor, binary)
    if binary:
        raise InvalidRequest.field("body", f"{len(binary)} bytes belong to no input")
    return request, inputs


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidRequest.field(LENGTH_HEADER, f"must be a number of bytes, not {echo(text)}")
    return int(text[:12])


def _read(tensor: InputTensor, binary: bytes) -> tuple[list[int], bytes]:
    """The integers of one input, and the binary data that is left for the next inputs."""
    name, count = tensor.name[:40], math.prod(tensor.shape)
    if tensor.datatype not in INTEGERS:
        raise InvalidRequest.field(
            name, f"datatype must be one of {', '.join(INTEGERS)}, not {echo(tensor.datatype)}"
        )
    if any(size < 1 for size in tensor.shape) or not 0 < count <= MAX_ELEMENTS:
        raise InvalidRequest.field(
            name, f"shape must have from 1 to {MAX_ELEMENTS} elements, not {echo(tensor.shape)}"
        )
    if "shared_memory_region" in tensor.parameters:
        raise InvalidRequest.field(name, "cannot be read from shared memory: send it in the request")
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        values = list(_flat(name, tensor.data or []))
    else:
        kind = np.dtype(tensor.datatype.lower()).newbyteorder("<")
        end = count * kind.itemsize
        if tensor.data is not None or size != end or end > len(binary):
            raise InvalidRequest.field(
                name, f"binary_data_size must be {end}, the size of its shape, not {echo(size)}"
            )
        values, binary = np.frombuffer(binary[:end], kind).tolist(), binary[end:]
    if len(values) != count:
        raise InvalidRequest.field(
            name,
            f"must have {count} element{'s' * (count > 1)}, as its shape {echo(tensor.shape)}, not {len(values)}",
        )
    return values, binary


def _flat(name: str, values: list[Any], depth: int = 0) -> Iterator[int]:
    for value in values:
        if isinstance(value, list) and depth < 8:
            yield from _flat(name, value, depth + 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value
        else:
            raise InvalidRequest.field(name, f"must be whole numbers, not {echo(value)}")


def serialise(
    response: InferenceResponse, arrays: dict[str, np.ndarray], binary: set[str]
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where raw tensors follow.

    Args:
        response: the outputs are appended to it, in the order of arrays.
        binary: names of the outputs that are sent raw.
    """
    for name, array in arrays.items():
        tensor = OutputTensor(name=name, datatype=array.dtype.name.upper(), shape=list(array.shape))
        if name in binary:
            tensor.parameters = {"binary_data_size": array.nbytes}
        else:
            tensor.data = array.flatten().tolist()
        response.outputs.append(tensor)
    head = json.dumps(response.model_dump(exclude_none=True)).encode()
    raw = [array.tobytes() for name, array in arrays.items() if name in binary]
    return b"".join([head, *raw]), len(head) if raw else None
