"""Words that several tasks draw from: common ones, so that most tokenizers have a single token for many of them."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


FEMALE_NAMES = listed("""
    Mary Sarah Anna Emily Laura Jessica Kate Lisa Jennifer Rachel Amy Susan Linda Karen Nancy Helen Julia Maria Jane
    Elizabeth Barbara Margaret Alice Amanda Michelle Stephanie Rebecca Kelly Melissa Emma Claire Diana Victoria
    Grace Sophie Charlotte Katherine Christina Angela Ruth Caroline Hannah Samantha Heather Nicole Lucy Eva
""")

MALE_NAMES = listed("""
    John James Robert Michael David William Richard Joseph Thomas Charles Daniel Matthew Anthony Mark Paul Steven
    Andrew George Kenneth Edward Brian Kevin Jason Jeff Ryan Jacob Gary Eric Stephen Jonathan Larry Scott Frank
    Benjamin Samuel Patrick Jack Dennis Peter Henry Adam Tom Simon Martin Alan Fred Harry Roger
""")
