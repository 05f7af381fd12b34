"""Sources and licences of the bundled model's training text."""

from __future__ import annotations

# domain: source, licence, file under licenses/
SOURCES = {
    "stories": (
        (
            "Pratham Books StoryWeaver (global-asp/pb-source 9ea530d) and African Storybook (global-asp/asp-source "
            "99e0223), the 683 stories under CC BY, each credited in the file; FairytaleQAData a24ddc1 (uci-soe, "
            "fairy books from before 1927); Grimm (PG 2591) and Lang's Blue (503), Red (540), Yellow (640) Fairy Book"
        ),
        "CC BY 4.0; public domain; packaging of FairytaleQA Apache-2.0",
        "CREDITS-stories.txt",
    ),
    "python": (
        "CPython 3.10.13 standard library, without tests and files that carry a third party's notice",
        "PSF-2.0",
        "cpython-3.10-PSF.txt",
    ),
    "legal": ("District of Columbia Code, statute text (DCCouncil/law-xml 9123af0180)", "public domain", ""),
    "drama": ("Shakespeare, Moby text (TheMITTech/shakespeare 6b82db8)", "public domain", ""),
    "recipes": (
        (
            "Cookbooks by Beeton (PG 10136), Leslie (9624), Kitchiner (28681), Child (13493), Burrell (16514) and the "
            "Suffrage Cook Book (26323); ronaldl29/public-domain-recipes 61b488e; LukeSmithxyz/based.cooking 2d8642e"
        ),
        "public domain; Unlicense",
        "public-domain-recipes-Unlicense.txt",
    ),
    "dictionary": ("WordNet 3.0, Princeton University, glosses", "WordNet 3.0 licence", "wordnet-3.0.txt"),
    "math": ("GSM8K, training split only (openai/grade-school-math 3101c7d)", "MIT", "gsm8k-MIT.txt"),
    "shell": (
        "tldr-pages team and contributors (tldr-pages/tldr 08e345f426), English pages, placeholders filled in",
        "CC BY 4.0",
        "tldr-pages-CC-BY-4.0.txt",
    ),
    "medical_qa": (
        "MedQuAD (abachaa/MedQuAD 577bd37), Ben Abacha & Demner-Fushman 2019, the nine subsets with answers",
        "CC BY 4.0",
        "medquad-CC-BY-4.0.txt",
    ),
    "dialogue": (
        "Taskmaster-3 and -4 (google-research-datasets/Taskmaster d92cb6a), Byrne, Ganesh et al., Google",
        "CC BY 4.0",
        "medquad-CC-BY-4.0.txt",
    ),
    "policy": ("18F Handbook 1e495563 and 18F Guides debc24b", "CC0, US government work", "18F-CC0.txt"),
    "tools": (
        "Chats with tools, written by `training.tool_chats` from lists of words and from passages of other domains",
        "as those domains",
        "",
    ),
    "chat": ("Questions from templates around passages of the eight domains of plain text", "as those domains", ""),
}
