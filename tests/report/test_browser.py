"""The page as a reader meets it, in headless Chromium: narrow and wide, light and dark, by
keyboard, and with names that are markup."""

import re
import shutil

import pytest

from robustft.report import write_report

from .test_outcomes import written
from .test_report import records

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("matplotlib")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><b>",
    "${alert(1)}",
    "{{7*7}}{% raw %}",
    '" onfocus="alert(1)" autofocus x="',
    '=HYPERLINK("http://x","y")',
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(records(3), folder, title="Digits and their shifts")
    return folder / "report.html"


@pytest.fixture
def open_page(browser):
    """Opens a file; whatever the page logs or asks for beside itself fails the test."""
    complaints, contexts = [], []

    def opened(path, width=1440, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("dialog") or dialog.dismiss())
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:"))
                else complaints.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_scrolls_sideways_and_the_small_table_is_whole(open_page, report, width):
    page = open_page(report, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cells = page.locator("table.overview th, table.overview td").all()
    assert len(cells) == 6 + 11 * 6
    for box in (cell.bounding_box() for cell in cells):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.locator("svg.plot").evaluate_all(
        """plots => plots.flatMap((plot) => {
             const frame = plot.getBoundingClientRect();
             return [...plot.querySelectorAll("text")].filter((text) => {
               const box = text.getBoundingClientRect();
               return box.left < frame.left - 1 || box.right > frame.right + 1
                 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
             }).map((text) => text.textContent);
           })"""
    )
    assert texts == []  # what is cut off at a chart's edge


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_shown_and_fit_a_narrow_screen(open_page, tmp_path, scheme):
    sets = {name: "ood" for name in (*HOSTILE[:3], "a" * 90)}
    write_report(written(tmp_path, sets={"Home": "id", **sets}), tmp_path)
    page = open_page(tmp_path / "report.html", 360, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shown = page.locator("img.small")
    assert shown.count() > 60
    assert shown.evaluate_all("all => all.every((one) => one.naturalWidth > 0 && one.alt)")
    assert page.locator("#near-far meter").count() == 12
    head = page.locator("#paired details[open] th", has_text="Gained")
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending", "one set is open at a time"


def test_on_a_narrow_screen_cards_go_sideways_and_on_paper_all_is_open(open_page, tmp_path):
    sets = {"Home": "id", **{f"Away {n}": "ood" for n in range(9)}}
    write_report(written(tmp_path, sets=sets), tmp_path)
    heights = {}
    for width in (390, 1440):
        page = open_page(tmp_path / "report.html", width)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        rows = page.locator(".row")
        assert rows.count() == 4, "sets, near, far, where methods differ"
        overflow = rows.evaluate_all("all => all.map((one) => one.scrollWidth > one.clientWidth)")
        assert overflow == 4 * [width == 390]
        heights[width] = page.evaluate("document.documentElement.scrollHeight")
        assert page.locator("#paired details[open]").count() == 1
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("#paired details[open]").count() == len(sets)
    assert heights[390] < 2.5 * heights[1440]
    text = page.locator("#differing .note").first.inner_text()
    shown, of = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+(?= (?:of the|images))", text))
    assert shown == page.locator("#differing .cards > li").count() < of
    assert "6 of 60" in page.locator("#images figcaption").first.inner_text()


def column(page, heading):
    """The numbers of a column of the small table, from the top."""
    heads = [
        text.strip(" ↑↓") for text in page.locator("table.overview thead th").all_inner_texts()
    ]
    cells = page.locator(f"table.overview tbody tr :nth-child({heads.index(heading) + 1})")
    return [float(text.split()[0]) for text in cells.all_inner_texts() if text[0] != "–"]


def test_a_table_sorts_by_click_and_by_keyboard(open_page, report):
    page = open_page(report)
    before = column(page, "OOD")
    head = page.locator("table.overview th", has_text="OOD")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "OOD") == sorted(before, reverse=True) != before
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "OOD") == sorted(before)
    page.keyboard.press("Enter")
    assert column(page, "OOD") == before
    # What was not measured stays last, whichever way: OSE and VRF have no other tasks.
    other = page.locator("table.overview th", has_text="Other tasks")
    for order in ("descending", "ascending"):
        other.get_by_role("button").click()
        assert other.get_attribute("aria-sort") == order
        last = page.locator("table.overview tbody tr").last
        assert "–" in last.inner_text()


def test_a_fold_opens_by_keyboard_and_its_table_sorts_by_number(open_page, report):
    page = open_page(report)
    page.locator("#seeds summary").focus()
    page.keyboard.press("Space")
    assert page.locator("#seeds table").is_visible()
    page.locator("#data summary").press("Enter")
    page.locator("#data th", has_text="Size").get_by_role("button").press("Space")
    assert page.locator("#data th", has_text="Size").get_attribute("aria-sort") == "descending"


def test_ticks_hide_and_arrow_keys_and_pointer_say_values(open_page, report):
    page = open_page(report)
    chart = page.locator("#chart-id-ood")
    plot, tip = chart.locator("svg.plot"), page.locator("#tip")
    series = chart.locator("g.mark[data-series='3'] .point")
    box = chart.get_by_role("checkbox", name="FT", exact=True)
    assert series.is_visible()
    box.focus()
    page.keyboard.press("Space")
    assert not series.is_visible()
    box.check()
    assert series.is_visible()
    assert not tip.is_visible()
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("Zero-shot: ID 7")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("LP: ID 9")
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    point = series.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2 + 3, point["y"] + point["height"] / 2)
    assert tip.inner_text().startswith("FT: ID 97.")
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_a_finger_shows_a_value(open_page, report):
    page = open_page(report, 390, has_touch=True, is_mobile=True)
    point = page.locator("#chart-ratio .point").first
    point.scroll_into_view_if_needed()
    point.tap()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "ratio 1.39" in tip.inner_text()
    page.locator("#chart-ratio h3").tap()
    assert not tip.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_follow_the_system_until_the_reader_chooses(open_page, report, scheme):
    page = open_page(report, color_scheme=scheme)
    shade = "getComputedStyle(document.body).backgroundColor"
    first = page.evaluate(shade)
    assert (first == "rgb(255, 255, 255)") == (scheme == "light")
    page.locator("#theme").press("Enter")
    second = page.evaluate(shade)
    assert (second == "rgb(255, 255, 255)") == (scheme == "dark")
    page.locator("#theme").press("Enter")
    assert page.evaluate(shade) == first


def test_the_methods_paragraph_is_copied(open_page, report):
    page = open_page(report)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#methods button").press("Enter")
    page.get_by_text("Copied.").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#methods-text").inner_text()
    assert "DiVE [arXiv:2511.09973]" in copied


def test_without_a_script_everything_is_there_but_what_needs_one(open_page, report):
    page = open_page(report, java_script_enabled=False)
    assert page.locator("table.overview").is_visible()
    assert page.locator("#chart-id-ood svg.plot .line").first.is_visible()
    assert not page.locator("#theme").is_visible()
    assert not page.locator(".legend input").first.is_visible()


def test_print_has_every_heading_and_fold_and_no_button(open_page, report):
    page = open_page(report)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("table.overview thead").inner_text().split("\t")[1].strip() == "ID ↑"
    assert page.locator("table.overview th button").first.is_visible()
    assert page.locator("#seeds table").is_visible()
    assert page.locator("#methods-text").is_visible()
    for gone in ("#theme", "#methods button", ".legend input"):
        assert not page.locator(gone).first.is_visible()


def test_names_are_text_whatever_they_are(open_page, tmp_path):
    places = ["Digits", "Letters", "Fonts", "Noise", "dive", "flyp", "Tilt"]
    renamed = dict(zip(places, HOSTILE, strict=True))
    odd = []
    for r in records(1):
        new = {k: renamed.get(v, v) if isinstance(v, str) else v for k, v in r.items()}
        for key in ("top1", "ece"):
            value = new.pop(f"{r.get('dataset')}:{key}", None)
            if value is not None:
                new[f"{new['dataset']}:{key}"] = value
        odd.append(new)
    write_report(odd, tmp_path, title=HOSTILE[1])
    page = open_page(tmp_path / "report.html")
    assert page.title() == HOSTILE[1]
    assert page.locator("h1").inner_text() == HOSTILE[1]
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    heads = page.locator("#data tbody th").all_inner_texts()
    rows = page.locator("table.overview tbody th").all_inner_texts()
    for name in HOSTILE:
        assert name in [*heads, *rows]
    assert page.locator("b, main img, [onfocus], [onerror]").count() == 0
