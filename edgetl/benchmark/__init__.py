"""How long engines take, and whether that may be believed.

Latency side by side: ``things`` says what can be timed and ``feeds`` with what; ``process`` starts a fresh process of
each (``_worker`` runs there), ``sampling`` has them take turns. ``steady``, ``summary`` with ``bootstrap``, and
``comparison`` make figures with intervals of the times; ``plausibility`` refuses impossible ones; ``ceilings`` and
``roofline`` tell how near they come to what the machine could do.

Whether it held still: ``conditions`` is what ``sampler`` reads from ``sensors`` (``telling`` has it in words),
``usage`` what the operating system says of a process; ``timeline`` with ``trends`` looks at the times, ``witnesses`` at
the rest, and ``stability`` judges by both, with ``reasons``. ``environment`` is what does not change meanwhile.

Queries as they come: ``schedules`` draws them, ``scenarios`` issues them to an engine (``issuing``) and waits
(``waiting``), or ``loadgen`` does; ``early_stopping`` says what so many queries show, ``peak_rate`` searches the
highest rate, ``overhead`` measures the driver itself. ``stages`` takes one answer apart. ``bundle_runs`` does all that
with an engine of a bundle, ``watched`` in a process of its own (``child``).
"""
