"""Step-3.7-Flash."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.models.families.step3p5 import Step3p5Family


class Step3p7Family(Step3p5Family):
    """Step-3.7-Flash: the decoder of Step-3.5-Flash, in an object of its own or not."""

    architecture: ClassVar[str] = "Step3p7ForConditionalGeneration"
    also: ClassVar[tuple[str, ...]] = ("Step3p7FlashForCausalLM", "Step3p7ForCausalLM")
    source: ClassVar[str] = "transformers, models/step3p7"
    inner: ClassVar[str] = "text_config"
