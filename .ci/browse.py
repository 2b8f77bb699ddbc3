"""Opens every page of a built site in a headless Chromium: python browse.py FOLDER [PICTURES].

A page must say nothing on the console, ask nothing of another host, fit a screen of 360 pixels,
and have text that stands out, in light and in dark mode. With PICTURES it leaves screenshots.
"""

import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

LOCAL = ("file:", "data:", "blob:")
NARROW = {"width": 360, "height": 740}
FITS = """() => {
  const held = e => {  // by something that scrolls
    for (; e && !e.matches("article, main, .bd-article-container"); e = e.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  const wide = [...document.querySelectorAll("main *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility() && !held(e));
  return wide.slice(0, 3).map(e => `<${e.localName} class="${e.className}">: ${e.innerText}`);
}"""
CONTRAST = """() => {
  const channel = c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const numbers = s => (s.match(/[\\d.]+/g) || []).map(Number);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > .9) return c;
    }
    return [255, 255, 255];
  };
  const bad = new Set();
  for (const e of document.querySelectorAll("main *")) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3 && n.data.trim()).map(n => n.data);
    const seen = {visibilityProperty: true, opacityProperty: true};
    if (!text.length || !e.checkVisibility(seen)) continue;
    const [a, b] = [numbers(getComputedStyle(e).color), ground(e)].map(light);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const where = `<${e.localName} class="${e.className}">: ${text[0].trim()}`;
    if (ratio < 4.5) bad.add(`${ratio.toFixed(1)} in ${where}`);
  }
  return [...bad].slice(0, 5);
}"""


def problems(site, pictures):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    found, opened = [], 0
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=NARROW)
        here = "?"

        def complain(what):
            found.append(f"{here}: {what}")

        page.on("console", lambda m: m.type in ("warning", "error") and complain(m.text))
        page.on("pageerror", lambda e: complain(e))
        page.on("request", lambda r: r.url.startswith(LOCAL) or complain(f"asks for {r.url}"))
        for path in sorted(p for p in site.rglob("*.html") if "_static" not in p.parts):
            here = str(path.relative_to(site))
            page.goto(path.as_uri())
            opened += 1
            for wide in page.evaluate(FITS):
                complain(f"wider than 360 pixels: {wide[:120]}")
            for mode in ("light", "dark"):
                page.emulate_media(color_scheme=mode)
                for weak in page.evaluate(CONTRAST):
                    complain(f"in {mode} mode, contrast {weak}")
                if pictures and "reference" not in path.parts:
                    name = here.replace("/", "-").removesuffix(".html")
                    page.screenshot(path=pictures / f"{name}-{mode}.png", full_page=True)
        browser.close()
    print(f"{opened} pages opened at 360 pixels, light and dark: {len(found)} complaints")
    return found


if __name__ == "__main__":
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        sys.exit("no Chromium here. Install one (Debian: apt-get install chromium).")
    site = pathlib.Path(sys.argv[1]).resolve()
    pictures = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    sys.exit("\n".join(problems(site, pictures)) or None)
