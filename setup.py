"""Everything that gets installed is said in settings.ini; this file only hands it to setuptools."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="], interpolation=None)
config.read(here / "settings.ini")
s = config["DEFAULT"]
extras = {k.removesuffix("_requirements"): v.split() for k, v in s.items() if k.endswith("_requirements")}
extras["all"] = sorted({r for name, rs in extras.items() if name != "real" for r in rs})

setup(name=s["lib_name"], version=s["version"], description=s["description"], author=s["author"], license="Apache-2.0",
      packages=[s["lib_path"]], python_requires=f">={s['min_python']}", install_requires=s["requirements"].split(), extras_require=extras,
      entry_points={"console_scripts": s["console_scripts"].split("\n")}, long_description=(here / "README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown")
