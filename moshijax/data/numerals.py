"""How numbers are said, and what they belong to: dates, times, money, units, ranges, arithmetic, fractions. English."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from moshijax import optional

Rule = tuple[str, "str | Callable[[re.Match[str]], str]"]

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SHORT_MONTHS = {month[:3]: month for month in _MONTHS if month != "May"} | {"Sept": "September"}
_UNITS = {
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "nm": "nanometer", "kg": "kilogram",
    "g": "gram", "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce", "mi": "mile", "ml": "milliliter",
    "mL": "milliliter", "L": "liter", "l": "liter", "gal": "gallon", "tbsp": "tablespoon", "tsp": "teaspoon",
    "yd": "yard", "ft": "foot", "GB": "gigabyte", "MB": "megabyte", "KB": "kilobyte", "kB": "kilobyte",
    "TB": "terabyte", "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "W": "watt",
    "kW": "kilowatt", "MW": "megawatt", "kWh": "kilowatt hour", "V": "volt", "dB": "decibel", "ms": "millisecond",
    "sec": "second", "secs": "second", "min": "minute", "mins": "minute", "hr": "hour", "hrs": "hour",
    "h": "hour", "kcal": "kilocalorie", "cal": "calorie", "mph": "mile per hour", "fps": "frame per second",
    "rpm": "revolution per minute", "Mbps": "megabit per second", "Gbps": "gigabit per second",
    "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree",
}  # fmt: skip
_MONEY = {
    "US$": ("U S dollar", "cent"), "$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny"),
    "¥": ("yen", "sen"), "₹": ("rupee", "paisa"), "USD": ("U S dollar", "cent"), "EUR": ("euro", "cent"),
    "GBP": ("pound", "penny"),
}  # fmt: skip
_SCALES = {
    "k": "thousand", "K": "thousand", "M": "million", "m": "million", "bn": "billion", "B": "billion", "T": "trillion",
}  # fmt: skip
_PLURALS = {
    "foot": "feet", "hertz": "hertz", "penny": "pence", "yen": "yen", "sen": "sen", "paisa": "paise", "half": "halves",
}  # fmt: skip
_ROMAN = {"I": 1, "V": 5, "X": 10}
_RULERS = (
    "Alexander|Benedict|Catherine|Charles|Edward|Elizabeth|Francis|Frederick|George|Gregory|Gustav|Henry|Innocent|"
    "Ivan|James|John|Leo|Louis|Mary|Napoleon|Nicholas|Paul|Peter|Philip|Pius|Ramses|Richard|Wilhelm|William"
)
_LONGEST = 15  # digits of a number; longer ones are said digit by digit

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"


def rules() -> Iterator[Rule]:
    """Yield patterns and what is said for them, to be applied in this order."""
    yield from _of_dates()
    yield from _of_times()
    yield from _of_money()
    yield from _of_units()
    months = "|".join(_MONTHS)
    roman = "(?=[IVX]{2})X{0,3}(?:IX|IV|V?I{0,3})"
    yield rf"\b({_RULERS}) ({roman})\b", lambda m: f"{m[1]} the {ordinal(str(_roman(m[2])))}"
    yield rf"\b((?!{months})[A-Z][a-z]+) ({roman})\b", lambda m: f"{m[1]} {cardinal(str(_roman(m[2])))}"
    yield r"(?<![\d.,-])(?:\+?\d{1,2}[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])?\d{3}[-.]\d{4}(?![\d-])", _telephone
    yield r"\b[vV](\d+(?:\.\d+)+)\b", lambda m: f"version {_points(m[1])}"
    yield r"\b\d+(?:\.\d+){2,}\b", lambda m: _points(m[0])
    yield r"\b(\d+)(st|nd|rd|th) ?- ?(?=\d+(?:st|nd|rd|th)\b)", lambda m: f"{ordinal(m[1])} to "
    yield r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: ordinal(m[1])
    yield from _of_years()
    yield r"\b24/7\b", "twenty four seven"
    yield r"\b50/50\b", "fifty fifty"
    yield r"\b(\d+) (\d+)/(\d+)\b", lambda m: f"{cardinal(m[1])} and {_fraction(m[2], m[3])}"
    yield r"\b(\d+)/(\d+)\b", lambda m: _fraction(m[1], m[2])
    yield rf"\b({NUMBER})[eE]([+-]?)(\d+)\b", _power_of_ten
    yield r"\b(\d+):(\d+)\b", lambda m: f"{cardinal(m[1])} to {cardinal(m[2])}"
    yield from _of_arithmetic()
    yield NUMBER, lambda m: f" {cardinal(m[0])} "
    yield r"\^ *two\b", " squared"
    yield r"\^ *three\b", " cubed"


def _of_dates() -> Iterator[Rule]:
    months, day, month = "|".join(_MONTHS), r"(0?[1-9]|[12]\d|3[01])", r"(0?[1-9]|1[0-2])"
    yield rf"\b({'|'.join(_SHORT_MONTHS)})\.? (?=\d)", lambda m: f"{_SHORT_MONTHS[m[1]]} "
    yield r"\b(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\b", lambda m: _date(int(m[2]), m[3], m[1])
    yield rf"\b{month}/{day}/(\d{{4}})\b", lambda m: _date(int(m[1]), m[2], m[3])
    yield rf"\b{day}\.{month}\.(\d{{4}})\b", lambda m: _date(int(m[2]), m[1], m[3])
    yield rf"\b({months}) (\d{{1,2}})(?:st|nd|rd|th)?\b(?!:)", lambda m: f"{m[1]} {ordinal(m[2])}"
    # ("the 2nd of May" needs no more than its ordinal)
    yield rf"\b(the )?(\d{{1,2}})(?:st|nd|rd|th)? ({months})\b", lambda m: f"the {ordinal(m[2])} of {m[3]}"


def _of_times() -> Iterator[Rule]:
    clock = r"(?:[01]?\d|2[0-3]):[0-5]\d"
    yield rf"({clock}) ?- ?(?={clock})", r"\1 to "
    yield r"(?i)\b([01]?\d|2[0-3]):([0-5]\d)(?!\d)(?: ?([ap])(?:\.m\.|m\b))?", _time
    yield r"(?i)\b(1[0-2]|[1-9]) ?- ?(?=(?:1[0-2]|[1-9]) ?[ap]m\b)", lambda m: f"{cardinal(m[1])} to "
    yield r"(?i)\b(1[0-2]|[1-9]) ?([ap])m\b", lambda m: f"{cardinal(m[1])} {m[2].upper()} M"


def _of_money() -> Iterator[Rule]:
    signs, codes = r"(US\$|[$€£¥₹])", "(USD|EUR|GBP)"
    scale = r"(?: ?(k|K|M|m|bn|B|T)\b| (thousand|million|billion|trillion)\b)?"
    amount = r"\d+(?:,\d{3})*(?:\.\d+)?"
    yield rf"{signs} ?({amount}) ?- ?\1? ?({amount}){scale}", _money_range
    yield rf"{signs} ?({amount}){scale}", lambda m: _money(m[1], m[2], m[3] or m[4])
    yield rf"\b({amount}){scale} ?(?:{codes}\b|([€£¥₹]))", lambda m: _money(m[4] or m[5], m[1], m[2] or m[3])
    yield r"\b(\d+) ?¢", lambda m: _counted(m[1], "cent")


def _of_units() -> Iterator[Rule]:
    yield r"\b(\d+)' ?(\d+)(?:\"|'')", lambda m: f"{_counted(m[1], 'foot')} {_counted(m[2], 'inch')}"
    unit = "|".join(re.escape(unit) for unit in sorted(_UNITS, key=len, reverse=True))
    yield rf"(?<=\d)((?: ?(?:{unit}))?) ?x ?(?=\d)", r"\1 by "
    # ("s" alone is no unit: the 90s)
    yield rf"(?<![\w.])(-?)({NUMBER}) ?({unit})(\^[23])?(?:/({unit}|s)(\^[23])?)?(?![\w/])", _unit


def _of_years() -> Iterator[Rule]:
    yield r"\b(1[1-9]|20)(\d)0'?s\b", lambda m: _plural(_words(int(f"{m[1]}{m[2]}0"), to="year"))
    yield r"'([2-9])0s\b", lambda m: _plural(_words(int(m[1]) * 10))
    year = r"(?:1[1-9]|20)\d\d"
    yield rf"\b({year}) ?- ?({year})\b", lambda m: f"{_year(m[1])} to {_year(m[2])}"
    yield r"(?<![\w.,$-])(1[1-9]|20)(\d\d)(?![\w,]*\d|\.\d|-\d)", lambda m: _year(m[0])


def _of_arithmetic() -> Iterator[Rule]:
    for sign, said in ((r"\*", "times"), ("-", "minus"), ("/", "divided by")):
        yield rf"(?<=\d) {sign} (?=\d)", f" {said} "
    yield rf"({NUMBER}) ?- ?(?={NUMBER})", lambda m: f"{cardinal(m[1])} to "
    yield rf"(?<=%) ?- ?(?={NUMBER})", " to "
    yield rf"(?<![\w.)])-({NUMBER})", lambda m: f" minus {cardinal(m[1])} "
    yield r"(?<=[A-Za-z])-(?=\d)", " "


def _words(number: int, **form: Any) -> str:
    said = optional.load("num2words").num2words(number, **form)
    return said.replace("-", " ").replace(",", "")


def cardinal(digits: str) -> str:
    """Return what is said for a number as `NUMBER` finds it: digit by digit after a point, or after a leading zero."""
    digits = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in digits.replace(",", ""))
    whole, _, part = digits.partition(".")
    if len(digits) > _LONGEST or (len(whole) > 1 and whole[0] == "0"):
        return " ".join("point" if digit == "." else _words(int(digit)) for digit in digits)
    return _words(int(whole)) + (f" point {_each(part)}" if part else "")


def ordinal(digits: str) -> str:
    """Return what is said for a number that counts the place in a row."""
    return _words(int(digits), to="ordinal") if len(digits) <= _LONGEST else cardinal(digits)


def _each(digits: str) -> str:
    return " ".join(_words(int(digit)) for digit in digits)


def _points(number: str) -> str:
    return " point ".join(cardinal(part) for part in number.split("."))


def _telephone(match: re.Match[str]) -> str:
    return ", ".join(_each(group) for group in re.findall(r"\d+", match[0]))


def _power_of_ten(match: re.Match[str]) -> str:
    number, sign, power = match.groups()
    return f"{cardinal(number)} times ten to the power of {'minus ' if sign == '-' else ''}{cardinal(power)}"


def _roman(numeral: str) -> int:
    values = [_ROMAN[letter] for letter in numeral]
    return sum(-v if any(w > v for w in values[n + 1 :]) else v for n, v in enumerate(values))


def _year(digits: str) -> str:
    return _words(int(digits), to="year")


def _date(month: int, day: str, year: str) -> str:
    return f"{_MONTHS[month - 1]} {ordinal(day)}, {_year(year)}"


def _time(match: re.Match[str]) -> str:
    hour, minute, half = match.groups()
    minutes = "" if minute == "00" else f" oh {cardinal(minute[1])}" if minute[0] == "0" else f" {cardinal(minute)}"
    if half:
        return f"{_words(int(hour))}{minutes} {half.upper()} M"
    return f"{_words(int(hour))}{minutes or ' o' + chr(39) + 'clock'}"


def _plural(name: str) -> str:
    head, _, tail = name.partition(" per ")
    if head.startswith("degree"):
        return head.replace("degree", "degrees")
    ending = "es" if head.endswith("ch") else "s"
    many = _PLURALS.get(head) or (head[:-1] + "ies" if head.endswith("y") else head + ending)
    return many + (f" per {tail}" if tail else "")


def _counted(digits: str, name: str) -> str:
    return f"{cardinal(digits)} {name if digits == '1' else _plural(name)}"


def _money(sign: str, amount: str, scale: str | None) -> str:
    name, cent = _MONEY[sign]
    if scale:
        return f"{cardinal(amount)} {_SCALES.get(scale, scale)} {_plural(name)}"
    whole, _, part = amount.partition(".")
    if len(part) != 2:
        return _counted(amount, name)
    cents = _counted(str(int(part)), cent) if int(part) else ""
    return " and ".join(
        filter(None, (_counted(whole, name) if int(whole.replace(",", "")) or not cents else "", cents))
    )


def _money_range(match: re.Match[str]) -> str:
    sign, low, high, *scale = match.groups()
    return f"{cardinal(low)} to {_money(sign, high, scale[0] or scale[1])}"


def _unit(match: re.Match[str]) -> str:
    sign, amount, unit, power, per, per_power = match.groups()
    raised = {"^2": "square ", "^3": "cubic ", None: ""}[power]
    name = _UNITS[unit] if amount == "1" else _plural(_UNITS[unit])
    below = {"^2": " squared", "^3": " cubed", None: ""}[per_power]
    rate = f" per {_UNITS.get(per, 'second')}{below}" if per else ""
    return f"{'minus ' if sign else ''}{cardinal(amount)} {raised}{name}{rate}"


def _fraction(above: str, below: str) -> str:
    if len(below) > 2 or int(below) < 2 or len(above) > 2 or int(above) < 1:
        return f"{cardinal(above)} over {cardinal(below)}"
    name = {"2": "half", "4": "quarter"}.get(below) or ordinal(below)
    return f"{cardinal(above)} {name if above == '1' else _plural(name)}"
