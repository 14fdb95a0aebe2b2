"""The objects that the shipped prior knows, in a fixed order.

All come from the library ``BlendSwap-CC-0.sh3f`` of Debian's package ``sweethome3d-furniture``: models in the
public domain (CC0 1.0), published on Blend Swap and converted to OBJ by Emmanuel Puybaret for Sweet Home 3D.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "sweethome3d-furniture 1.8, BlendSwap-CC-0.sh3f"
LICENCE = "CC0-1.0"


@dataclass(frozen=True)
class VocabularyObject:
    """``identifier`` is the catalogue's; ``turn`` degrees about z bring a model drawn sideways to face +x."""

    name: str
    identifier: str
    creator: str
    turn: float = 0.0
    aliases: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return self.name.replace(" ", "-")


OBJECTS: tuple[VocabularyObject, ...] = (
    VocabularyObject("teddy bear", "teddyBear", "Manitislate", aliases=("teddy",)),
    VocabularyObject("rocking horse", "caballito", "Sangio", turn=90),
    VocabularyObject("horse", "horse2", "Twin97"),
    VocabularyObject("chicken", "chicken", "CDmir230", aliases=("hen",)),
    VocabularyObject("biplane", "cartoon_biplane", "Robo3dguy", aliases=("toy plane",)),
    VocabularyObject("forklift", "forkLift", "TheGIWI", turn=90, aliases=("fork lift",)),
    VocabularyObject("toilet", "toiletsUnit", "Nhumrod"),
    VocabularyObject("toy motorbike", "motorbike", "Ulanbek", turn=-90, aliases=("motorbike",)),
    VocabularyObject("playhouse", "childHut", "Ulanbek", aliases=("play house",)),
    VocabularyObject("wooden doll", "woodToy", "Miroljub", aliases=("doll",)),
    VocabularyObject("grand piano", "pianoAQueue", "Dante", aliases=("piano",)),
    VocabularyObject("orchid", "orchids", "Elysia", aliases=("orchids",)),
    VocabularyObject("football table", "table_football", "Jeff2207", aliases=("table football", "foosball table")),
    VocabularyObject("table fan", "tableFan", "Shivraj", aliases=("fan",)),
    VocabularyObject("mixer", "kitchenaid", "Swno", aliases=("stand mixer",)),
    VocabularyObject("coffee machine", "coffeeBrewer", "TreyClaine", aliases=("coffee brewer", "coffee maker")),
    VocabularyObject("mailbox", "mofx_mailbox", "Mofx", aliases=("letterbox",)),
    VocabularyObject("fire extinguisher", "fireExtinguisher", "Bastable", aliases=("extinguisher",)),
    VocabularyObject("barrel", "barrel", "GyngaNynja"),
    VocabularyObject("crate", "crate", "GyngaNynja", aliases=("wooden crate",)),
    VocabularyObject("shipping container", "shippingContainer", "Bhoult", aliases=("container",)),
    VocabularyObject("basketball", "basketball", "SEspider"),
    VocabularyObject("potted plant", "littlePlant", "Rameshrj", aliases=("plant",)),
    VocabularyObject("cactus", "cactus", "Evivivi"),
    VocabularyObject("cupcake", "cupcake", "Dvachib", aliases=("cup cake",)),
    VocabularyObject("hot dog", "hotDog", "Erickfree", turn=180, aliases=("hotdog",)),
    VocabularyObject("milk carton", "tetrapak", "Tastykle3d & eTeks", aliases=("milk",)),
    VocabularyObject("sofa", "sofa2", "Blend Swap #92104", aliases=("couch",)),
    VocabularyObject("green chair", "armchair", "Absfrm"),
    VocabularyObject("red chair", "chair2", "Ingoenius"),
    VocabularyObject("deck chair", "deckChair", "BigMouse", aliases=("deckchair",)),
    VocabularyObject("bed", "bed3", "SVAFnemesis"),
    VocabularyObject("desk", "desk", "Razi"),
    VocabularyObject("potty", "potty", "Icarus"),
    VocabularyObject("locker", "lockedLocker", "Twin97"),
    VocabularyObject("stone lantern", "stoneLantern", "Argonius", aliases=("lantern",)),
)
