"""Stands for the one function of setuptools' former module that MVDream and ImageDream call."""

import importlib.util
import os


def resource_filename(package, path):
    return os.path.join(importlib.util.find_spec(package).submodule_search_locations[0], path)
