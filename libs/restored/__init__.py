"""Started on an old copy of its own data, the plane only reads until every host has told what runs (ADR 6, S06)."""
