"""``drnet-captum layers``: where the CAM family can look in a model, and where it does."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .console import OUT, complain, say, user_errors

if TYPE_CHECKING:
    from torch import nn

    from drnet_captum.layers.discovery import TargetLayer

MARK = "→"


def command(
    model: Annotated[str, typer.Argument(help='"embedded", "timm:NAME" or "torchvision:NAME".', show_default=False)],
    input_size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Height and width of the image.", show_default="the model's own"),
    ] = None,
) -> None:
    """List the layers that decide a model's answer alone, input to output, and mark the target layer.

    Every path from the image to the answer passes through each of them. No weights are needed, and none fetched.
    """
    with user_errors():
        if input_size is not None and min(input_size) < 1:
            raise ValueError(f"expected --input-size to be two positive integers, got {input_size[0]} {input_size[1]}")
        import torch

        from drnet_captum.data import load_model
        from drnet_captum.layers.discovery import LayerDiscoveryError, find_cut_layers, find_target_layer

        try:
            with torch.device("meta"):
                net = load_model(model, pretrained=False)
        except NotImplementedError:  # a constructor that looks at its weights (torchvision's RegNet)
            net = load_model(model, pretrained=False)
        cuts = find_cut_layers(net, input_size)
        target, reason = None, None
        try:
            target = find_target_layer(net, input_size).name
        except LayerDiscoveryError as error:
            reason = error
        if cuts:
            OUT.print(layer_table(cuts, target, parameter_shares(net, input_size)))
        else:
            say("no layer with a grid decides the answer alone")
        if reason is not None:
            complain(f"no target layer: {reason}")
            raise typer.Exit(2)


def layer_table(cuts: list[TargetLayer], target: str | None, shares: dict[str, float]) -> Table:
    """Cut layers, one a row; at most 80 columns wide where names fold.

    Args:
        target: the name of the layer to mark.
        shares: name → the share of the parameters that ran before its end.
    """
    caption = f"{MARK} the target layer, where CAMs look when no layer is named" if target is not None else None
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    prefixed = any(layer.prefix_tokens for layer in cuts)
    table.add_column("", no_wrap=True, width=1)
    table.add_column("layer", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("layout", no_wrap=True)
    table.add_column("grid", no_wrap=True, justify="right")
    table.add_column("channels", no_wrap=True, justify="right")
    if prefixed:
        table.add_column("prefix\ntokens", justify="right", min_width=6)
    table.add_column("parameters\nbefore", justify="right", min_width=10)
    for layer in cuts:
        is_target = layer.name == target
        table.add_row(
            MARK if is_target else "",
            layer.name,
            type(layer.module).__name__,
            layer.layout,
            "×".join(map(str, layer.grid)),
            str(layer.channels),
            *([str(layer.prefix_tokens)] if prefixed else []),
            f"{shares[layer.name]:.1%}",
            style="bold" if is_target else None,
        )
    return table


def parameter_shares(model: nn.Module, input_size: tuple[int, ...] | None = None) -> dict[str, float]:
    """Module name → the share of the model's parameters in use by the time that its last run has ended.

    A parameter is in use once the module that owns it has first begun to run. Where that never runs, it may be read by
    the closest module around it that does (the projection in ``nn.MultiheadAttention`` is), and is in use at its end.
    """
    import torch

    from drnet_captum.layers.discovery import example_inputs

    names = {module: name for name, module in model.named_modules()}
    begun: dict[str, int] = {}
    ended: dict[str, int] = {}
    clock = count()

    def begin(module: nn.Module, args: object) -> None:
        begun.setdefault(names[module], next(clock))

    def end(module: nn.Module, args: object, output: object) -> None:
        ended[names[module]] = next(clock)

    for example in example_inputs(model, input_size):
        begun.clear()
        ended.clear()
        handles = [module.register_forward_pre_hook(begin) for module in names]
        handles += [module.register_forward_hook(end) for module in names]
        try:
            with torch.no_grad():
                model(example)
            break
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError):  # this size is not the model's
            continue
        finally:
            for handle in handles:
                handle.remove()
    uses: list[tuple[int, int]] = []
    for name, parameter in model.named_parameters():  # each once, where it is shared
        owner = around = name.rpartition(".")[0]
        while around not in ended and around:
            around = around.rpartition(".")[0]
        uses.append((begun[owner] if owner in begun else ended[around], parameter.numel()))
    total = sum(size for _, size in uses) or 1
    return {name: sum(size for when, size in uses if when <= at) / total for name, at in ended.items()}
