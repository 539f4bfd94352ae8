"""How figures reach people: as words, as charts and as reports. Pure: data in, text or pictures out; the core knows none of it."""
