"""Pictures of the dashboard for the documentation, with Debian's chromium.

    python -m tests.e2e.dashboard docs/images

It starts a server with the bundled model and a quarter of its experts in memory, sends requests for a minute so that
lines have a shape, and saves ``dashboard-light.png`` and ``dashboard-dark.png``.
"""

from __future__ import annotations

import argparse
import itertools
import threading
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect, sync_playwright

from tests.e2e.processes import serving

WIDTH, HEIGHT = 1440, 900
SECONDS = 75  # of traffic before the pictures
PROMPTS = (
    "Who may apply for a licence under this section, and when may it be revoked?",
    "Write a Python function that counts the words of a file.",
    "How do I make a simple tomato soup?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    asked = parser.parse_args()
    ended = threading.Event()
    with serving("--host-expert-memory", "25%", "--memory", "2GiB") as server, sync_playwright() as playwright:
        clients = [threading.Thread(target=send, args=(server.url, number, ended)) for number in range(2)]
        for client in clients:
            client.start()
        browser = playwright.chromium.launch(executable_path=asked.chromium)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        try:
            page.goto(server.url)
            page.wait_for_timeout(1000 * SECONDS)
            chat(page)
            for theme in ("light", "dark"):
                page.get_by_label("Theme").select_option(theme)
                page.wait_for_timeout(500)
                page.screenshot(path=asked.folder / f"dashboard-{theme}.png")
                print(f"saved {asked.folder / f'dashboard-{theme}.png'}")
        finally:
            ended.set()
            for client in clients:
                client.join()
            browser.close()


def send(url: str, number: int, ended: threading.Event) -> None:
    """Send one request after the other, every second one to the model ``auto``."""
    with httpx.Client(base_url=url, timeout=60) as client:
        for place in itertools.count(number):
            if ended.wait(place % 5 / 2):
                return
            body = {"prompt": PROMPTS[place % len(PROMPTS)], "max_tokens": 160 + 60 * (place % 3), "ignore_eos": True}
            client.post("/v1/completions", json=body | ({"model": "auto"} if place % 2 else {})).raise_for_status()


def chat(page: Page) -> None:
    """Answer the examples, and select a token and an expert."""
    page.get_by_role("button", name="Run all examples").click()
    expect(page.locator("#chat-status")).to_contain_text("All examples are answered", timeout=300_000)
    page.locator(".token").nth(6).click()
    page.locator("#transcript").evaluate("box => { box.scrollTop = 0; }")
    page.locator("#heatmap").focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowDown", *["ArrowRight"] * 4, "Enter"):
        page.keyboard.press(key)


if __name__ == "__main__":
    main()
