"""A small catalogue whose right answers are known."""

from __future__ import annotations

import numpy as np

from fedrec.core.interactions import Catalog

FILMS = {
    "星际穿越 (2014)": ("科幻", "冒险"),
    "Gravity: Astronauts Lost in Space (2013)": ("Sci-Fi",),
    "流浪地球 太空灾难 (2019)": ("科幻",),
    "Apollo 13: A Mission to the Moon (1995)": ("Adventure", "Drama"),
    "Notting Hill: A Love Story (1999)": ("Comedy", "Romance"),
    "花样年华 爱情故事 (2000)": ("爱情", "剧情"),
    "The Pianist in the Ghetto (2002)": ("Drama", "War"),
    "厨师的美食之旅 (2014)": ("喜剧",),
    "Kung Fu Cook (2005)": ("Action", "Comedy"),
    "Jaws: The Shark (1975)": ("Horror",),
    "小猪佩奇 动画片 (2017)": ("动画", "儿童"),
    "Finding the Little Fish (2003)": ("Animation", "Children"),
}
SPACE = {0, 1, 2, 3}


def films() -> Catalog:
    """Twelve films, Chinese and English; the first four play in space."""
    ids = np.array([f"film-{k}" for k in range(len(FILMS))])
    return Catalog(ids, np.array(list(FILMS)), tuple(FILMS.values()))
