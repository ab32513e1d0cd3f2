"""D-RISE: what a detector saw where it found something, by masking the image at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from drnet_captum._captum import log_usage
from drnet_captum.detect.adapt import as_detector
from drnet_captum.detect.detections import Detections
from drnet_captum.detect.detector import TOLERANCE, answers, check_images
from drnet_captum.engine.state import kept
from drnet_captum.masking.estimate import EVERY, Estimate
from drnet_captum.masking.options import MaskingOptions
from drnet_captum.masking.run import MaskedRun
from drnet_captum.masking.sums import Normalize

from .detection_similarity import PairSimilarity, Similarity, cosine, given_objectness, iou


class DRISE(PerturbationAttribution):
    r"""D-RISE: saliency of a detection, from how well it is found again when parts of the image are hidden.

    .. math:: S_t = \sum_i w^t_i M_i, \qquad w^t_i = \max_j \mathrm{IoU}(L_t, L^i_j) \cdot
              \cos(P_t, P^i_j) \cdot O^i_j

    over N random masks M_i, as those of :class:`RISE`, and all proposals j that the detector makes for the masked
    image; no proposal is weight 0. The default ``normalize="mean"`` subtracts the mean weight,
    :math:`\sum_i (w_i - \bar w) M_i`: the same expectation up to a constant, and far less noise.

    Masks are never stored: they are made from their small grids, on the images' device, for each forward pass. What is
    drawn depends on the generator alone, not on the device, and the result not on ``perturbations_per_eval`` (up to
    rounding).

    Args:
        detector: anything that :func:`drnet_captum.as_detector` takes: a torchvision, Hugging Face or Ultralytics
            detector, an ONNX Runtime session, or a function (B, 3, H, W) -> B ``Detections`` or dicts with "boxes"
            (xyxy pixels), "scores", and "class_probs" or "labels".
        image_range: least and largest value of an image, for a function; checked, and used for the fill. None: not
            checked, and taken to be 0 to 1 where the images are in it.
        box_similarity: boxes (P, 4) and (T, 4) -> (P, T); None leaves the factor out.
        class_similarity: class vectors (P, K) and (T, K) -> (P, T); None leaves it out.
        objectness: detections -> (P,); by default the one that the detector gives, if it does. None leaves it out.

    Args of ``attribute``:
        inputs: (N, 3, H, W), as the detector takes them.
        target: one detection for each image: a list of N ``Detections`` of one row, or ``Detections`` with N rows.
            They need not be the detector's: ``Detections.drawn([[x1, y1, x2, y2]], [label])`` asks why something was
            not found.
        n_masks: N of the paper, 5,000.
        grid: cells of a mask, (rows, columns).
        keep_probability: share of cells that are shown.
        baselines: what hidden parts show: "mean", the mean colour of photos (the default); a number or tensor; "black";
            "blur". With a CenterNet, mean and black put the maximum into the box alike (8 of 8 detections), and found
            0.69 and 0.72 of the energy in it; others report poor maps with black.
        perturbations_per_eval: masks in one forward pass. None: few on a CPU, where more are not faster; on a GPU as
            many as are found to fit.
        normalize: "mean", "coverage", "expectation" or "none", the paper's sum (see ``masking.sums.MaskSums``). Of the
            same eight detections, 2,000 masks, the first two put the maximum into the box of all, the others of four.
        generator: where the masks come from, on the CPU. None: a new one, seeded with 0.
        show_progress: show a progress bar.
        stop_at: stop when the median over pixels of the map's standard error, divided by the map's range, is below it;
            looked at every 250 masks.

    Returns (of ``attribute``): the images' shape, alike in all channels, in units of the similarity (times masks).

    Raises:
        ValueError: boxes with x2 < x1, a class that the detector has not, another number of targets or results than
            images, images outside the range: before the first mask is drawn.

    Source: Petsiuk et al. 2021, arXiv 2006.03204.

    Example:
        >>> import torch
        >>> def detector(images):  # finds one thing, the surer the brighter the upper left corner is
        ...     box = torch.tensor([[0.0, 0, 8, 8]])
        ...     label = torch.tensor([3])
        ...     return [{"boxes": box, "scores": x[:, :8, :8].mean()[None], "labels": label} for x in images]
        >>> drise = DRISE(detector)
        >>> maps = drise.attribute(torch.ones(1, 3, 32, 32), Detections.drawn([[0, 0, 8, 8]], [3]), n_masks=200)
        >>> maps.shape, divmod(int(maps[0, 0].argmax()), 32) < (8, 8)
        (torch.Size([1, 3, 32, 32]), True)
    """

    def __init__(
        self,
        detector: Any,
        *,
        image_range: tuple[float, float] | None = None,
        box_similarity: PairSimilarity | None = iou,
        class_similarity: PairSimilarity | None = cosine,
        objectness: Callable[[Detections], Tensor | None] | None = given_objectness,
    ) -> None:
        self.detector = as_detector(detector, image_range=image_range)
        super().__init__(self.detector)
        self.similarity = Similarity(box_similarity, class_similarity, objectness)

    @classmethod
    def get_name(cls) -> str:
        """As the paper writes it, without the hyphen."""
        return "DRISE"

    @log_usage
    def attribute(
        self,
        inputs: Any,
        target: Detections | Sequence[Detections],
        n_masks: int = 5000,
        grid: tuple[int, int] = (16, 16),
        keep_probability: float = 0.5,
        baselines: Any = None,
        perturbations_per_eval: int | None = None,
        normalize: Normalize = "mean",
        generator: torch.Generator | None = None,
        show_progress: bool = False,
        stop_at: float | None = None,
    ) -> Any:
        """One map for each image, of one detection; see the class."""
        x = single(inputs)
        if isinstance(target, Detections):
            target = [target[i] for i in range(len(target))]
        for of_image in target:
            if isinstance(of_image, Detections) and len(of_image) != 1:
                raise ValueError(
                    f"expected one detection for each image, got {len(of_image)}: choose one, found[0], or call "
                    "attribute_detections, which explains all of them on one set of masks"
                )
        maps = self.attribute_detections(
            x,
            target,
            n_masks=n_masks,
            grid=grid,
            keep_probability=keep_probability,
            baselines=baselines,
            perturbations_per_eval=perturbations_per_eval,
            normalize=normalize,
            generator=generator,
            show_progress=show_progress,
            stop_at=stop_at,
        )
        found = torch.stack(maps).expand_as(x).contiguous()
        return (found,) if isinstance(inputs, tuple) else found

    def attribute_detections(
        self, inputs: Any, targets: Detections | Sequence[Detections], **options: Any
    ) -> list[Tensor]:
        """All detections of all images on one set of masks: as many forward passes as for one.

        Args:
            inputs: (N, 3, H, W).
            targets: N detections, each of any number of rows; for one image also without the list.
            options: the keywords of ``attribute``.

        Returns:
            N tensors (M_i, H, W).
        """
        x = single(inputs)
        run, counts = self._run(x, targets, MaskingOptions(**options))
        if run is None:
            return [x.new_zeros(0, *x.shape[2:]) for _ in counts]
        run.finish(self.get_name())
        return list(run.sums.maps(run.options.normalize).to(x.dtype).split(counts))

    def attribute_iter(
        self, inputs: Any, targets: Detections | Sequence[Detections], *, every: int = EVERY, **options: Any
    ) -> Iterator[Estimate]:
        """The maps as they come, with their standard errors, after every ``every`` masks and after the last.

        Arguments as for ``attribute_detections``. Nothing is held while the caller looks at an estimate: the loop may
        be left at any time.

        Example:
            >>> import torch
            >>> def detector(images):
            ...     box = torch.tensor([[0.0, 0, 8, 8]])
            ...     return [{"boxes": box, "scores": x.mean()[None], "labels": torch.tensor([0])} for x in images]
            >>> x, target = torch.ones(1, 3, 16, 16), Detections.drawn([[0, 0, 8, 8]], [0])
            >>> [e.n_masks for e in DRISE(detector).attribute_iter(x, target, n_masks=600)]
            [250, 500, 600]
        """
        if every < 1:
            raise ValueError(f"expected every, the masks between two estimates, of at least 1, got {every}")
        x, chosen = single(inputs), MaskingOptions(**options)
        run, counts = self._run(x, targets, chosen, errors=True)
        if run is None:
            return
        for _ in run.steps(every):
            yield Estimate.of(run.sums, chosen.normalize, counts, x.dtype)

    def _run(
        self, x: Tensor, targets: Detections | Sequence[Detections], options: MaskingOptions, errors: bool = False
    ) -> tuple[MaskedRun | None, list[int]]:
        """Everything checked, and the masks drawn; no run where there is no target."""
        check_images(x, self.detector.image_range)
        wanted = [targets] if isinstance(targets, Detections) else list(targets)
        check_targets(wanted, len(x))
        with torch.no_grad(), kept(self.detector.model, {x.device}):
            unmasked = answers(self.detector.propose(x.detach().clone()), len(x))
        wanted = [self._fitting(w.to(x.device), found) for w, found in zip(wanted, unmasked, strict=True)]
        counts = [len(w) for w in wanted]
        if not sum(counts):
            return None, counts

        def weigh(copies: Tensor, m: int) -> Tensor:
            found = answers(self.detector.propose(copies), len(copies))
            rows = [self.similarity.strongest(found[i :: len(x)], w).mT for i, w in enumerate(wanted)]
            return torch.cat(rows)  # (T, m)

        image_range = self.detector.image_range or assumed_range(x, options.baselines)
        run = MaskedRun(
            x, weigh, sum(counts), options, self.detector.model, image_range, errors or options.stop_at is not None
        )
        return run, counts

    def _fitting(self, wanted: Detections, found: Detections) -> Detections:
        """Targets whose classes the detector has."""
        if found.class_probs is not None:
            k = found.class_probs.shape[1]
        elif self.detector.categories is not None:
            k = len(self.detector.categories)
        else:
            return wanted
        outside = (wanted.labels < 0) | (wanted.labels >= k)
        if bool(outside.any()):
            label = int(wanted.labels[outside][0])
            raise ValueError(f"expected target classes from 0 to {k - 1}, as the detector has {k}, got {label}")
        if wanted.class_probs is not None and wanted.class_probs.shape[1] != k:
            raise ValueError(
                f"expected targets with class_probs for the detector's {k} classes, got {wanted.class_probs.shape[1]}"
            )
        return wanted


def single(inputs: Any) -> Tensor:
    """The images, of a tensor or a tuple of one."""
    if isinstance(inputs, tuple):
        if len(inputs) != 1:
            raise ValueError(f"expected one batch of images, got a tuple of {len(inputs)}")
        inputs = inputs[0]
    check_images(inputs)
    x: Tensor = inputs
    return x


def check_targets(targets: Sequence[Any], images: int) -> None:
    """Detections for each image, whose boxes are boxes.

    Raises:
        ValueError: another number of them than images; boxes without area, not finite, or xywh.
        TypeError: something else than detections.
    """
    for target in targets:
        if not isinstance(target, Detections):
            raise TypeError(
                f"expected targets as Detections, one for each image, got {type(target).__name__}: find_detections "
                "gives the detector's own, Detections.drawn(boxes, labels) makes others"
            )
    if len(targets) != images:
        raise ValueError(f"expected targets for each of the {images} images, got {len(targets)}")
    for target in targets:
        boxes = target.boxes
        if not bool(torch.isfinite(boxes).all()):
            raise ValueError(f"expected finite boxes, got {boxes.tolist()}")
        wrong = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if bool(wrong.any()):
            raise ValueError(
                f"expected boxes as xyxy pixels with x2 > x1 and y2 > y1, got {boxes[wrong][0].tolist()}: convert xywh "
                "to (x, y, x + w, y + h)"
            )


def assumed_range(x: Tensor, baselines: Any) -> tuple[float, float] | None:
    """The range of images for a function that was told none: 0 to 1 where they are in it; None for normalised ones.

    Raises:
        ValueError: images that look like 0 to 255, where the fill depends on it.
    """
    low, high = (float(v) for v in x.detach().aminmax())
    if low < -TOLERANCE:
        return None
    if high <= 1 + TOLERANCE:
        return (0.0, 1.0)
    if baselines is None or (isinstance(baselines, str) and baselines != "blur"):
        raise ValueError(
            f"cannot tell the images' range from values of {low:g} to {high:g}: pass image_range=(0, 255), say, where "
            "DRISE is constructed, or baselines as a number"
        )
    return None
