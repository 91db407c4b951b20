"""A circuit as a model: its edges carry what they carry, every other edge its reference, on any tokens.

With zeros and means a reference is the same on all tokens. With resampling it is what a *donor* writes: a corrupted
prompt of the task with as many tokens, which goes on with the tokens that were generated, so that clean and corrupted
stay aligned. The folder of a saved one holds arrays and names, and no code and no weights of the model, which is loaded
by its name and compared with the digest of its weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine.belonging import weights_digest
from acdc.engine.optimal import references_of
from acdc.engine.patching import Patching
from acdc.engine.references import References, mean_references, zero_references
from acdc.errors import AcdcError, check_type, check_whole
from acdc.evaluation.judging import judging_problem
from acdc.graph import BoolArray
from acdc.model.check import check_prompts, refuse_unfit
from acdc.model.load import load
from acdc.model.model import Model
from acdc.store.folders import placed, whole_folder
from acdc.store.reading import parse_json, read
from acdc.store.writing import write_atomically
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import check_ablation

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Task

VERSION = "1.0"
NAME, ARRAYS = "circuit-model.json", "circuit-model.safetensors"
_LARGEST = 2**30


@torch.no_grad()
def references_on_discovery(model: Model, dataset: Dataset, circuit: Circuit) -> References:
    """What edges outside a circuit carry where that does not depend on the prompt, from a task's discovery prompts."""
    graph, ablation = circuit.graph, dataset.ablation
    if ablation == "zero":
        return zero_references(model, graph)
    if ablation == "optimal":
        constants = judging_problem(model, dataset, graph, found=circuit).constants
        assert constants is not None
        return references_of(constants, model, graph)
    return mean_references(model, graph, dataset.discovery, per_position=ablation == "mean-position", batch_size=16)


class CircuitModel(torch.nn.Module):
    """A circuit of a model that runs on any tokens.

    Attributes:
        model: the whole model; circuit: its circuit.
        ablation: what edges outside the circuit carry.
        donors: `[donor, position]` int64 token ids and, as `donor_lengths` `[donor]`, how many are real; used with
            "resample" alone.
    """

    def __init__(
        self, model: Model, circuit: Circuit, ablation: str, references: References | None, donors: list[list[int]]
    ) -> None:
        """Use `of` or `load`."""
        super().__init__()
        graph = circuit.graph
        if graph != model.graph(qkv=graph.qkv, group_kv=graph.group_kv, inputs=graph.inputs):
            raise AcdcError(f"the circuit is of another graph than those of model {model.name!r}")
        refuse_unfit(model)
        self.model, self.circuit, self.ablation = model, circuit, check_ablation(ablation)
        self._references, self._donors = references, [tuple(row) for row in donors]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Raises an AcdcError: what has been read of the model and the references would not follow."""
        raise AcdcError(
            "a circuit's model stays in the dtype and on the device of its model: load that with another, "
            "acdc.load(…, dtype=…, device=…)"
        )

    @classmethod
    def of(
        cls, model: Model, task: Task | Dataset | Prompts, circuit: Circuit, *, ablation: str | None = None
    ) -> CircuitModel:
        """The circuit with references from a task's discovery prompts.

        Args:
            ablation: None: the one that the circuit was found with, or the task's.

        Raises:
            AcdcError: the circuit is not of this model, or the prompts do not fit it.
        """
        check_type("a Circuit", circuit, Circuit)
        dataset = as_dataset(task, model, ablation=ablation or circuit.provenance.ablation or None)
        prompts = dataset.discovery
        check_prompts(model, prompts[:1])
        references, donors = None, []
        if dataset.ablation != "resample":
            references = references_on_discovery(model, dataset, circuit)
        else:
            mask = prompts.own if prompts.corrupted_mask is None else prompts.corrupted_mask
            donors = [row[real].tolist() for row, real in zip(prompts.corrupted, mask, strict=True)]
        return cls(model, circuit, dataset.ablation, references, donors)

    # ---- running -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, *, corrupted_ids: Tensor | None = None, edges: BoolArray | Circuit | None = None
    ) -> Tensor:
        """Logits `[B, T, vocabulary]` at every position, float32 or better.

        Args:
            input_ids: `[B, T]` int64, rows without padding.
            corrupted_ids: `[B, T]`, what edges outside the circuit are resampled from; None: a donor of T tokens.
            edges: another circuit of the same graph than the model's own.

        Raises:
            AcdcError: no donor has so many tokens, a mean by position was not taken of so long prompts, tokens are none
                of the model's, or corrupted ones are given where nothing is resampled.
        """
        refuse_unfit(self.model)
        if corrupted_ids is not None and self.ablation != "resample":
            raise AcdcError(f"corrupted tokens are for resampling, and this circuit's ablation is {self.ablation}")
        edges = self._edges(edges)
        input_ids = torch.as_tensor(input_ids)
        if input_ids.dim() != 2 or not input_ids.numel():
            raise AcdcError(f"expected token ids [prompt, position], got shape {list(input_ids.shape)}")
        B, T = input_ids.shape
        if self.ablation == "resample" and corrupted_ids is None:
            corrupted_ids = self.donor(T)[None].expand(B, T)
        corrupted_ids = input_ids if corrupted_ids is None else torch.as_tensor(corrupted_ids)
        if corrupted_ids.shape != input_ids.shape:
            raise AcdcError(
                f"expected corrupted tokens of shape {list(input_ids.shape)} like the clean ones, got "
                f"{list(corrupted_ids.shape)}"
            )
        for name, ids in (("tokens", input_ids), ("corrupted tokens", corrupted_ids)):
            outside = ids[(ids < 0) | (ids >= self.model.input_vocabulary_size)]
            if len(outside):
                raise AcdcError(
                    f"expected {name} between 0 and {self.model.input_vocabulary_size - 1}, got {int(outside[0])}"
                )
        length = self._positions
        if length is not None and length < T:
            raise AcdcError(f"the means by position are of {length} positions, and the prompt has {T} tokens")
        everywhere = torch.arange(T).expand(B, T)
        prompts = Prompts(input_ids, corrupted_ids, torch.ones(B, T, dtype=torch.bool), everywhere)
        if self.model.context_length is not None and self.model.context_length < T:
            raise AcdcError(f"{T} tokens are more than the model's context of {self.model.context_length}")
        patching = Patching(
            self.model, self.circuit.graph, prompts, ablation=self.ablation, references=self._shortened(T)
        )
        return patching.logits(edges)[0]

    def _edges(self, given: BoolArray | Circuit | None) -> BoolArray:
        """Those of a circuit of the same graph; None: its own."""
        if given is None:
            return self.circuit.edges
        if not isinstance(given, Circuit):
            given = Circuit(self.circuit.graph, given)
        if given.graph != self.circuit.graph:
            raise AcdcError("expected edges of the circuit's own graph, got a circuit of another")
        return given.edges

    def donor(self, length: int) -> Tensor:
        """`[length]`: the first corrupted prompt of the task with so many tokens."""
        for row in self._donors:
            if len(row) == length:
                return torch.tensor(row)
        lengths = ", ".join(map(str, sorted({len(row) for row in self._donors})))
        raise AcdcError(
            f"no corrupted prompt of the task has {length} tokens to resample from (they have {lengths}): give one of "
            "your own, or take another ablation"
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        corrupted_ids: Tensor | None = None,
        max_new_tokens: int = 20,
        edges: BoolArray | Circuit | None = None,
    ) -> Tensor:
        """The tokens with what the circuit goes on with, the likeliest each time: `[B, T + max_new_tokens]`.

        The corrupted prompt goes on with the same tokens. No token ends it: rows are of one length.

        Raises:
            AcdcError: as `forward`; so many tokens fit neither the model's context nor the means by position.
        """
        check_whole("a number of new tokens", max_new_tokens, least=1)
        tokens, edges = torch.as_tensor(input_ids), Circuit(self.circuit.graph, self._edges(edges))
        room = [n for n in (self.model.context_length, self._positions) if n is not None]
        if tokens.dim() == 2 and room and (most := min(room) - tokens.shape[1] + 1) < max_new_tokens:
            raise AcdcError(
                f"after {tokens.shape[1]} tokens the circuit can go on by {max(0, most)} tokens, as its runs have at "
                f"most {min(room)}; got {max_new_tokens}"
            )
        if self.ablation == "resample" and corrupted_ids is None:
            corrupted_ids = self.donor(tokens.shape[1])[None].expand_as(tokens)
        for _ in range(max_new_tokens):
            logits = self(tokens, corrupted_ids=corrupted_ids, edges=edges)[:, -1]
            new = logits.argmax(-1, keepdim=True).to(tokens.device)
            tokens = torch.cat((tokens, new), dim=1)
            corrupted_ids = None if corrupted_ids is None else torch.cat((corrupted_ids.to(new.device), new), dim=1)
        return tokens

    @property
    def _positions(self) -> int | None:
        """Positions that references differ by, where they do."""
        if self._references is None:
            return None
        T = self._references.inputs[0].shape[-2]
        return T if self.ablation == "mean-position" else None

    def _shortened(self, T: int) -> References | None:
        if self._references is None or self._positions is None:
            return self._references
        inputs, outputs = (
            tuple(x[..., :T, :] for x in part) for part in (self._references.inputs, self._references.outputs)
        )
        return References(inputs, outputs)

    # ---- files -------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the circuit, what its other edges carry, and what it is of, into a folder; no weights of the model."""
        arrays = {}
        if self._references is not None:
            arrays = {f"inputs.{i}": x for i, x in enumerate(self._references.inputs)}
            arrays |= {f"outputs.{i}": x for i, x in enumerate(self._references.outputs)}
        record = {
            "format": "acdc-circuit-model", "version": VERSION, "model": self.model.name,
            "revision": self.model.revision, "tokenizer": self.model.tokenizer_name,
            "weights_sha256": weights_digest(self.model),
            "ablation": self.ablation, "donors": [list(row) for row in self._donors],
        }  # fmt: skip
        with whole_folder(folder, force=force) as place:
            self.circuit.write(place)
            content = safetensors.torch.save({name: x.contiguous().cpu() for name, x in arrays.items()})
            write_atomically(place / ARRAYS, content)
            write_atomically(place / NAME, json.dumps(record, indent=1) + "\n")
        return Path(folder)

    @classmethod
    def load(
        cls, folder: str | Path, *, model: Model | None = None, tokenizer: Any = None, **options: Any
    ) -> CircuitModel:
        """Open what `save` wrote.

        Args:
            model: the model, if it is at hand; None: loaded by its name.
            tokenizer: instead of the model's own, where it is loaded by its name.
            options: device, dtype and trust_remote_code, as `acdc.load` takes them, for loading the model by its name.

        Raises:
            AcdcError: the files are missing or damaged, or the model's weights are not those it was made with.
        """
        folder = Path(folder)
        path = placed(folder, NAME)
        if not path.exists():
            raise AcdcError(
                f"no circuit's model at {str(folder)!r}: expected {NAME}, as CircuitModel.save writes it"
            )
        what = repr(str(path))
        value = parse_json(read(path), what)
        kinds: dict[str, Any] = {"model": str, "weights_sha256": str, "ablation": str, "donors": list}
        if (
            not isinstance(value, dict)
            or value.get("format") != "acdc-circuit-model"
            or any(not isinstance(value.get(name), kind) for name, kind in kinds.items())
        ):
            raise AcdcError(f"{what} is damaged, or not a circuit's model")
        if value.get("version") != VERSION:
            raise AcdcError(
                f"{what} is of version {value.get('version')!r:.40}; this version of acdc reads {VERSION}"
            )
        donors = value["donors"]
        if not all(isinstance(row, list) and all(type(x) is int and x >= 0 for x in row) for row in donors):
            raise AcdcError(f"{what} is damaged: expected donors as lists of token ids")
        if model is None:
            tokenizer = value.get("tokenizer") if tokenizer is None else tokenizer
            try:
                model = load(value["model"], revision=value.get("revision"), tokenizer=tokenizer, **options)
            except AcdcError as error:
                raise AcdcError(
                    f"{str(folder)!r} is a circuit of {value['model']!r}, which cannot be loaded by that name: give it "
                    f"with CircuitModel.load(folder, model=…); {error}"
                ) from None
        if weights_digest(model) != value["weights_sha256"]:
            raise AcdcError(f"the weights of {model.name} are not those that {what} was made with")
        circuit = Circuit.load(folder)
        references = _references(read(placed(folder, ARRAYS), largest=_LARGEST), what, model, circuit)
        if (references is None) != (check_ablation(value["ablation"]) == "resample"):
            some = "no values" if references is None else "values"
            raise AcdcError(
                f"{what} is damaged: its ablation is {value['ablation']}, and {ARRAYS} holds {some} for it"
            )
        return cls(model, circuit, value["ablation"], references, donors)

    def extra_repr(self) -> str:
        return f"{self.circuit.n_edges} of {self.circuit.graph.n_edges} edges of {self.model.name}, {self.ablation}"


def _references(content: bytes, what: str, model: Model, circuit: Circuit) -> References | None:
    try:
        arrays = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise AcdcError(f"{what}: {ARRAYS} cannot be read: {error}") from None
    if not arrays:
        return None
    zero = zero_references(model, circuit.graph)
    parts = []
    for name, expected in (("inputs", zero.inputs), ("outputs", zero.outputs)):
        found = [arrays.get(f"{name}.{i}") for i in range(len(expected))]
        for x, y in zip(found, expected, strict=True):
            if x is None or x.dtype != y.dtype or (*x.shape[:-2], x.shape[-1]) != (*y.shape[:-2], y.shape[-1]):
                raise AcdcError(f"{what}: {ARRAYS} does not hold the references of a circuit of {model.name}")
        parts.append(tuple(x.to(model.device) for x in found if x is not None))
    return References(*parts)
