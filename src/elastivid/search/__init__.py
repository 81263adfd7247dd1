"""Folders of videos to searchable moments: tables, snapshot, pipeline, moments, report.

Searching in words loads numpy and nothing heavier; writing an index loads lancedb, torch and av.
"""
