"""The dashboard: pages for people, made on the server, with a little script for keys.

``sessions`` know who has logged in, ``forms`` read what a page sends, ``showing`` makes pages of
templates, and ``pages`` are the pages and their acts. Every act is a plain form, so that a page
works without its script.
"""
